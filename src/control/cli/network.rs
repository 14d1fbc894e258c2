//! `spoke-control network` and `hub`: what nodes join.
use super::Context;
use super::fleet::seconds;
use super::node::{nodes, views};
use super::table::{json, render};
use crate::api::now_ms;
use crate::api::operators::{NO_CONTRACT, NetworkChange};
use crate::registry::operate;
use crate::store::network::{Access, Network};
use crate::store::node::NodeState;
use crate::tls;
use clap::{Args, Subcommand};
use ipnet::IpNet;
use spoke_command::{Failure, Outcome, print};
use spoke_config::node::Role;
use spoke_config::policy::GrantsPolicy;
use spoke_model::address::HostPort;
use spoke_model::interface_name::IfName;
use spoke_model::node_id::NodeId;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// Values of a network.
#[derive(Debug, Args)]
pub struct NetworkValues {
    /// IPv4 addresses of its nodes
    #[arg(long)]
    pool4: Option<IpNet>,
    /// IPv6 addresses of its nodes
    #[arg(long)]
    pool6: Option<IpNet>,
    /// Addresses never given to a node
    #[arg(long, value_delimiter = ',')]
    reserved: Option<Vec<IpAddr>>,
    /// Resolvers inside the tunnel
    #[arg(long, value_delimiter = ',')]
    dns: Option<Vec<IpAddr>>,
    /// Bytes; 0 leaves it to the node
    #[arg(long)]
    mtu: Option<u32>,
    /// Seconds; 0 is off
    #[arg(long)]
    keepalive: Option<u16>,
    /// Whether hubs forward from node to node
    #[arg(long)]
    forwarding: Option<bool>,
    /// Whether an operator has to approve each node
    #[arg(long)]
    approval: Option<bool>,
    /// Who may be a peer: open or nft
    #[arg(long)]
    access: Option<Access>,
    /// How long an address stays unused after its node was removed, such as 7d
    #[arg(long)]
    quarantine: Option<String>,
    /// A TOML file with the grants section its nodes take where they have none of their own; none takes it away
    #[arg(long, value_name = "FILE")]
    grants: Option<PathBuf>,
}

impl NetworkValues {
    fn change(self) -> Result<NetworkChange, Failure> {
        let quarantine_secs = self.quarantine.as_deref().map(seconds).transpose()?;
        let grants = self.grants.as_deref().map(policy).transpose()?;
        Ok(NetworkChange {
            pool4: self.pool4,
            pool6: self.pool6,
            reserved: self.reserved,
            dns: self.dns,
            mtu: self.mtu,
            keepalive: self.keepalive,
            forwarding: self.forwarding,
            approval: self.approval,
            access: self.access,
            quarantine_secs,
            grants,
        })
    }
}

fn policy(path: &Path) -> Result<GrantsPolicy, Failure> {
    if path.as_os_str() == "none" {
        return Ok(GrantsPolicy::default());
    }
    let bad = |problem: &dyn std::fmt::Display| Failure::BadInput(format!("--grants {}: {problem}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|e| bad(&e))?;
    let policy = GrantsPolicy::from_toml(&text).map_err(|e| bad(&e))?;
    if policy.is_empty() {
        return Err(bad(&"there is nothing in it; `--grants none` takes the policy away"));
    }
    Ok(policy)
}

/// `spoke-control network …`
#[derive(Debug, Subcommand)]
pub enum NetworkCommand {
    /// Add a network
    Create {
        /// Its name: a-z 0-9 -
        name: String,
        /// Kernel name of the interface on its nodes
        #[arg(long, default_value = "wg0")]
        interface: IfName,
        /// Everything else
        #[command(flatten)]
        values: NetworkValues,
    },
    /// List networks
    List,
    /// Change a network
    Set {
        /// Its name
        name: String,
        /// What to change
        #[command(flatten)]
        values: NetworkValues,
    },
}

/// `spoke-control hub …`
#[derive(Debug, Subcommand)]
pub enum HubCommand {
    /// Announce a hub; prints the token that enrols it
    Add {
        /// Its node id
        id: NodeId,
        /// Its network
        #[arg(long)]
        network: String,
        /// Where nodes reach it, HOST:PORT
        #[arg(long)]
        endpoint: HostPort,
        /// Its address inside the tunnel; the first free one if not given
        #[arg(long)]
        address: Option<IpAddr>,
    },
    /// List hubs
    List,
}

fn contract_for(context: &Context, values: &NetworkValues) -> Outcome {
    if values.access == Some(Access::Nft) && context.config.grants.is_none() {
        return Err(Failure::BadInput(format!("--access {NO_CONTRACT}")));
    }
    Ok(())
}

/// `spoke-control network …`
pub async fn network(context: &Context, command: NetworkCommand) -> Outcome {
    let (store, actor) = (&context.store, &context.actor);
    match command {
        NetworkCommand::Create { name, interface, values } => {
            let mut network = Network::new(&name, None, None, interface);
            contract_for(context, &values)?;
            values.change()?.apply(&mut network);
            operate::add_network(store, &network, actor, now_ms()).await?;
            list(context, &[network]).await
        }
        NetworkCommand::Set { name, values } => {
            contract_for(context, &values)?;
            let change = values.change()?;
            let network = operate::set_network(store, &name, |n| change.apply(n), actor, now_ms()).await?;
            list(context, &[network]).await
        }
        NetworkCommand::List => {
            let networks = store.read().await?.networks().await?;
            list(context, &networks).await
        }
    }
}

async fn list(context: &Context, networks: &[Network]) -> Outcome {
    if context.json {
        print(&json(&networks));
        return Ok(());
    }
    let yes = |b| if b { "yes" } else { "no" }.to_owned();
    let mut tx = context.store.read().await?;
    let mut rows = Vec::new();
    for n in networks {
        let stats = tx.pool_stats(n).await?;
        let pools: Vec<String> = n.pool4.iter().chain(&n.pool6).map(ToString::to_string).collect();
        rows.push(vec![
            n.name.clone(),
            pools.join(","),
            format!("{} of {}", stats.allocated_addresses, stats.allocated_addresses + stats.available_addresses),
            n.interface.to_string(),
            yes(n.forwarding),
            yes(n.approval),
            n.access.as_str().to_owned(),
        ]);
    }
    print(&render(&["NETWORK", "POOLS", "LEASED", "INTERFACE", "FORWARDING", "APPROVAL", "ACCESS"], &rows));
    Ok(())
}

/// `spoke-control hub …`
pub async fn hub(context: &Context, command: HubCommand) -> Outcome {
    match command {
        HubCommand::Add { id, network, endpoint, address } => {
            let (store, actor) = (&context.store, &context.actor);
            let token = operate::add_hub(store, &id, &network, &endpoint, address, actor, now_ms()).await?;
            let config = &context.config;
            let pin = tls::load(config.tls.as_ref(), &config.state_dir, &config.public)?.pin;
            if context.json {
                print(&json(&serde_json::json!({"node_id": id, "token": token.reveal(), "pin": pin})));
            } else {
                print(&format!("{}\n", token.reveal()));
            }
        }
        HubCommand::List => {
            let mut all = views(context).await?;
            all.retain(|v| v.role == Role::Hub && v.state != NodeState::Removed);
            nodes(context, &all);
        }
    }
    Ok(())
}
