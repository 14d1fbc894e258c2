//! The command line of `spoke-control`. It works on the database, also while no control plane is running.
pub mod audit;
pub mod backup;
pub mod invitation;
pub mod key;
pub mod network;
pub mod node;
pub mod prompt;
pub mod release;
pub mod serve;
pub mod signing_key;
pub mod status;
pub mod table;
pub mod token;

use crate::api::routes::description;
use crate::config::{Config, FILE, StoreUrl};
use crate::registry::RegistryError;
use crate::signing::MasterKey;
use crate::store::Store;
use crate::store::audit::Actor;
use clap::{Parser, Subcommand};
use spoke_command::{Failure, Outcome, exit_code, print, usage, wants_json};
use spoke_model::key_source::KeySource;
use spoke_sys::disk::read_secret;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Enrols nodes, hands out signed state, runs the fleet.
#[derive(Debug, Parser)]
#[command(name = "spoke-control", version = env!("CARGO_PKG_VERSION"), max_term_width = 100)]
#[command(
    after_help = "Exit codes: 0 success, 1 failure, 2 bad input.\nThe configuration is read from --config, then from variables SPOKE_CONTROL__SECTION__KEY."
)]
pub struct Cli {
    /// Configuration file
    #[arg(short, long, global = true, value_name = "FILE", default_value = FILE)]
    pub config: PathBuf,
    /// Print JSON, errors too: documents with their version in `schema`
    #[arg(long, global = true)]
    pub json: bool,
    /// The subcommand
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve devices and operators in the foreground
    Serve,
    /// Show the fleet in figures
    Status,
    /// Print the OpenAPI document of the HTTP API
    Openapi,
    /// Print the pin of the certificate that devices trust
    Pin,
    /// Manage nodes
    #[command(subcommand)]
    Node(node::NodeCommand),
    /// Manage enrolment tokens
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Manage the keys of operators, for the HTTP API
    #[command(subcommand)]
    Key(key::KeyCommand),
    /// Manage networks
    #[command(subcommand)]
    Network(Box<network::NetworkCommand>),
    /// Manage hubs
    #[command(subcommand)]
    Hub(network::HubCommand),
    /// Manage the desired releases of the fleet's images
    #[command(subcommand)]
    Release(release::ReleaseCommand),
    /// Manage the keys that sign state documents
    #[command(subcommand)]
    SigningKey(signing_key::SigningKeyCommand),
    /// Show the audit trail, newest first; verify or export it
    Audit(audit::AuditArgs),
    /// Write the whole database to a file; the signing keys in it stay sealed under the master key
    Backup(backup::BackupArgs),
    /// Restore a backup into an empty database
    Restore(backup::RestoreArgs),
}

/// The context of a command.
#[derive(Debug)]
pub struct Context {
    /// The configuration.
    pub config: Config,
    /// The store.
    pub store: Store,
    /// Whether to answer in JSON.
    pub json: bool,
    /// The command line of this program, for instructions to operators.
    pub invocation: String,
    /// The operator, for the audit trail.
    pub actor: Actor,
}

/// Parses the arguments and runs the command.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    let json = wants_json(&args);
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(e) => return usage(json, &e),
    };
    let outcome = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(run(cli)),
        Err(e) => Err(e.into()),
    };
    exit_code("spoke-control", json, outcome.map_err(classify))
}

/// A request that the registry refuses is bad input.
fn classify(failure: Failure) -> Failure {
    match failure {
        Failure::Failed(e) if e.downcast_ref().is_some_and(RegistryError::is_bad_input) => {
            Failure::BadInput(format!("{e:#}"))
        }
        other => other,
    }
}

async fn run(cli: Cli) -> Outcome {
    if matches!(cli.command, Command::Openapi) {
        print(&(serde_json::to_string_pretty(&description())? + "\n"));
        return Ok(());
    }
    let variables = std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
    let config = Config::load(&cli.config, variables).map_err(|faults| Failure::BadInput(faults.to_string()))?;
    spoke_sys::keys::ensure_dir(&config.state_dir)?;
    let store = Store::open(&url(&config)?).await?;
    let user = std::env::var("SUDO_USER").or_else(|_| std::env::var("USER")).unwrap_or_else(|_| "cli".into());
    let invocation = match cli.config.to_str() {
        Some(FILE) => "spoke-control".to_owned(),
        _ => format!("spoke-control --config {}", cli.config.display()),
    };
    let context = Context { config, store, json: cli.json, invocation, actor: Actor::Operator(user) };
    if !matches!(cli.command, Command::Restore(_) | Command::Pin) {
        MasterKey::check_store(&serve::master_path(&context.config), &context.store)
            .await
            .map_err(anyhow::Error::new)?;
    }
    let outcome = match cli.command {
        Command::Serve => serve::run(&context).await,
        Command::Status => status::status(&context).await,
        // Answered before the configuration was read.
        Command::Openapi => Ok(()),
        Command::Pin => status::pin(&context),
        Command::Node(command) => node::node(&context, command).await,
        Command::Token(command) => token::token(&context, command).await,
        Command::Key(command) => key::key(&context, command).await,
        Command::Network(command) => network::network(&context, *command).await,
        Command::Hub(command) => network::hub(&context, command).await,
        Command::Release(command) => release::run(&context, command).await,
        Command::SigningKey(command) => signing_key::signing_key(&context, command).await,
        Command::Audit(args) => audit::audit(&context, args).await,
        Command::Backup(args) => backup::backup(&context, &args).await,
        Command::Restore(args) => backup::restore(&context, &args).await,
    };
    context.store.close().await;
    outcome
}

/// The secret at `source`, without trailing white space.
pub fn secret(source: &KeySource) -> Result<spoke_model::secret::Secret<String>, Failure> {
    let path = match source {
        KeySource::File(path) => path.clone(),
        KeySource::Credential(name) => {
            let dir = std::env::var_os("CREDENTIALS_DIRECTORY")
                .ok_or_else(|| Failure::BadInput(format!("{source}: the service manager passed no credentials")))?;
            Path::new(&dir).join(name)
        }
    };
    let bytes = read_secret(&path, 4096)?
        .ok_or_else(|| Failure::BadInput(format!("{source} does not exist: write the secret into it, mode 0600")))?;
    let text = std::str::from_utf8(&bytes).map_err(|_| Failure::BadInput(format!("{source} is not text")))?;
    Ok(spoke_model::secret::Secret::new(text.trim_end().to_owned()))
}

fn url(config: &Config) -> Result<String, Failure> {
    match &config.store {
        StoreUrl::Plain(url) => Ok(url.clone()),
        StoreUrl::Secret(source) => Ok(secret(source)?.reveal().clone()),
    }
}
