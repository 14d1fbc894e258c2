//! `spoke plan`: what `run` would change in the kernel now.
use super::remembered;
use crate::config_file::load;
use crate::found_keys;
use spoke_command::{Failure, Outcome, print};
use spoke_config::effective::Effective;
use spoke_config::interface::Interface;
use spoke_model::error_chain::ErrorChain;
use spoke_model::key_source::KeySource;
use spoke_model::tree::Tree;
use spoke_net::derive::{DeriveError, Keys, derive};
use spoke_net::plan::plan;
use spoke_net::render;
use spoke_net::state::{Desired, Memory, Observed};
use spoke_sys::kernel::Kernel as _;
use spoke_sys::keys;
use spoke_sys::keys::{IfMissing, KeyError};
use std::path::Path;

/// `spoke plan`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Exit with 2 if there is anything to do, 1 if that cannot be found out
    #[arg(long)]
    pub exit_code: bool,
}

/// Prints the plan; reads the kernel, the state directory and name servers, and changes nothing.
pub fn run(config: &Path, args: &Args, json: bool) -> Outcome {
    let clean = show(config, json).map_err(|e| if args.exit_code { e.not_2() } else { e })?;
    if args.exit_code && !clean { Err(Failure::Differs) } else { Ok(()) }
}

/// Prints the plan; whether there is nothing to do.
fn show(config: &Path, json: bool) -> Result<bool, Failure> {
    let mut notes = Vec::new();
    let mut note = |line: String| if json { notes.push(line) } else { print(&format!("{line}\n")) };
    let effective = remembered::effective(load(config)?);
    let config = effective.own();
    let found = spoke_command::block_on(found_keys::found(config))?;
    for (name, key) in &found {
        note(format!("{name}: take over the key of the interface, public key {}", key.public()));
    }
    let missing = |source: &KeySource| {
        matches!(keys::private(source, IfMissing::Fail), Err(KeyError::Missing { origin: KeySource::File(_), .. }))
    };
    let generated = |i: &&Interface| !found.contains_key(&i.name) && missing(&i.private_key);
    for interface in config.interfaces.iter().filter(generated) {
        let (name, source) = (&interface.name, &interface.private_key);
        note(format!("{name}: generate the key {source}; the public key below is a placeholder"));
    }
    effective.override_lines().iter().for_each(|line| note(line.to_string()));
    let (mut keys, faults) = keys::load(config, IfMissing::Imagine);
    keys.private.extend(found);
    faults.iter().for_each(|fault| note(format!("left as it is: {}", ErrorChain(fault))));
    let look = spoke_command::block_on(look(&effective, keys))??;
    let adopted = look.observed.links.iter().filter(|(_, have)| have.wireguard && !have.ours);
    for (name, _) in adopted {
        note(format!(
            "(adopted) {name} was made by another program: what the configuration sets is changed, the rest is kept"
        ));
    }
    let plan = plan(&look.desired?, &look.observed, &Memory::default());
    let text = render::plan(&plan, &look.observed);
    if json {
        let lines = text.lines().filter(|line| *line != render::NOTHING);
        print(&super::document(super::object(vec![
            ("clean", Tree::Bool(plan.is_clean())),
            ("notes", Tree::of_lines(notes)),
            ("steps", Tree::of_lines(lines)),
        ]))?);
    } else {
        print(&text);
    }
    Ok(plan.is_clean())
}

/// What the kernel has, and what is wanted of it.
pub(super) struct Look {
    /// The kernel's state.
    pub(super) observed: Observed,
    /// The desired state, if the configuration makes a valid one.
    pub(super) desired: Result<Desired, DeriveError>,
}

/// Reads the kernel, the state directory and name servers.
pub(super) async fn look(config: &Effective, keys: Keys) -> Result<Look, Failure> {
    let wanted = config.own().interfaces.iter().map(|i| i.name.clone()).collect();
    let observed = crate::run::kernel(config.own())?.observe(&wanted).await?;
    let facts = remembered::facts(config, keys, &observed).await?;
    Ok(Look { desired: derive(config, &facts, &Desired::default()), observed })
}
