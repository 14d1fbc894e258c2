//! The fleet's subcommands: nodes, tokens, networks, hubs, signing keys, audit trail, figures.
use super::table::{json, render};
use super::{Context, Failure, Outcome, print, serve};
use crate::config::reader::parse_duration;
use crate::config::types::HostPort;
use crate::control::api::now_ms;
use crate::control::api::operators::NetworkChange;
use crate::control::registry::RegistryError;
use crate::control::registry::operate::{self, NodeChange};
use crate::control::signing::{MasterKey, SigningKeys};
use crate::control::store::audit::Filter;
use crate::control::store::network::{Access, Network};
use crate::control::store::node::{NodeView, Overrides};
use crate::control::store::token::NewToken;
use crate::control::{store::node::NodeState, tls};
use crate::enroll::signature::VerifyKey;
use crate::net::state::IfName;
use crate::node::NodeId;
use clap::{Args, Subcommand};
use ipnet::IpNet;
use std::io::{IsTerminal as _, Write as _};
use std::net::IpAddr;

/// Whether the request was at fault, and not the store.
pub fn is_bad_input(e: &RegistryError) -> bool {
    match e {
        RegistryError::Field(_)
        | RegistryError::Value(_)
        | RegistryError::Network(_)
        | RegistryError::NotFound(..)
        | RegistryError::Conflict(_)
        | RegistryError::Revoked(_)
        | RegistryError::NodeIdTaken { .. }
        | RegistryError::KeyTaken
        | RegistryError::BadToken => true,
        RegistryError::Lease(_) | RegistryError::Store(_) => false,
    }
}

/// `spoke-control node …`
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// List nodes
    List {
        /// Only those in this state: expected, pending, active, removed
        #[arg(long)]
        state: Option<String>,
    },
    /// Show one node
    Show {
        /// Node id
        id: NodeId,
    },
    /// Let a node that waits into the fleet
    Approve {
        /// Node id
        id: NodeId,
    },
    /// Take a node out of the fleet
    Remove {
        /// Node id
        id: NodeId,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Change the label of a node
    Rename {
        /// Node id
        id: NodeId,
        /// Its label; empty removes it
        label: String,
    },
    /// Set overrides of a node; those not given are cleared
    Override {
        /// Node id
        id: NodeId,
        /// UDP port
        #[arg(long)]
        listen_port: Option<u16>,
        /// Bytes
        #[arg(long)]
        mtu: Option<u32>,
        /// Seconds; 0 is off
        #[arg(long)]
        keepalive: Option<u16>,
        /// Resolvers
        #[arg(long, value_delimiter = ',')]
        dns: Option<Vec<IpAddr>>,
    },
    /// Shut a node off from other nodes, or let it back
    Isolate {
        /// Node id
        id: NodeId,
        /// Let it back
        #[arg(long)]
        off: bool,
    },
}

/// `spoke-control token …`
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token; its text is shown this once
    Create {
        /// The network its nodes join
        #[arg(long)]
        network: String,
        /// How often it may be used
        #[arg(long, default_value_t = 1)]
        uses: u64,
        /// How long it is good for, such as 24h
        #[arg(long)]
        expires_in: Option<String>,
        /// The only node it enrols
        #[arg(long)]
        node: Option<NodeId>,
        /// For people
        #[arg(long)]
        note: Option<String>,
    },
    /// List tokens without their text
    List,
    /// Make a token worthless
    Revoke {
        /// The id that `token list` shows
        id: String,
    },
}

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
}

impl NetworkValues {
    fn change(self) -> Result<NetworkChange, Failure> {
        let quarantine_secs = self.quarantine.as_deref().map(seconds).transpose()?;
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
        })
    }
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

/// `spoke-control signing-key …`
#[derive(Debug, Subcommand)]
pub enum SigningKeyCommand {
    /// List keys in service and retired
    List,
    /// Put a new key into service beside the others
    Add,
    /// Take a key out of service, once every node has reported a generation signed with a newer one
    Retire {
        /// The key that `signing-key list` shows
        key: VerifyKey,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

/// `spoke-control audit`
#[derive(Debug, Args)]
pub struct AuditArgs {
    /// Only of this entity, such as a node id
    #[arg(long)]
    entity: Option<String>,
    /// At most so many
    #[arg(long, default_value_t = 50)]
    limit: i64,
}

fn seconds(text: &str) -> Result<u64, Failure> {
    let bad = || Failure::BadInput(format!("{text:?} is not a duration such as 30s, 12h or 7d"));
    Ok(parse_duration(text).ok_or_else(bad)?.as_secs())
}

/// Asks before something that cannot be undone; without a terminal only `--yes` will do.
fn confirm(what: &str, yes: bool) -> Outcome {
    if yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        return Err(Failure::BadInput(format!("{what}: say --yes to do it without being asked")));
    }
    let _ = write!(std::io::stderr().lock(), "{what}? Type yes: ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    if answer.trim() == "yes" { Ok(()) } else { Err(Failure::BadInput("nothing was done".into())) }
}

async fn views(context: &Context, only: Option<&NodeId>) -> Result<Vec<NodeView>, Failure> {
    Ok(context.store.read().await?.node_views(only, "", i64::MAX).await?)
}

fn nodes(context: &Context, views: &[NodeView]) {
    if context.json {
        return print(&json(&views));
    }
    let dash = || "-".to_owned();
    let row = |v: &NodeView| {
        let health = match (v.healthy, v.outcome.as_deref()) {
            (_, Some(bad @ ("reverted" | "refused"))) => bad.to_owned(),
            (Some(true), _) => "healthy".to_owned(),
            (Some(false), _) => "unhealthy".to_owned(),
            (None, _) => dash(),
        };
        vec![
            v.id.to_string(),
            v.label.clone().unwrap_or_else(dash),
            format!("{:?}", v.role).to_lowercase(),
            v.state.as_str().to_owned(),
            v.network.clone(),
            v.addresses.first().cloned().unwrap_or_else(dash),
            health,
            format!("{}/{}", v.observed_generation.map_or_else(dash, |g| g.to_string()), v.generation),
            v.last_seen.clone().unwrap_or_else(dash),
        ]
    };
    let rows: Vec<_> = views.iter().map(row).collect();
    let titles = ["NODE", "LABEL", "ROLE", "STATE", "NETWORK", "ADDRESS", "HEALTH", "GENERATION", "LAST SEEN"];
    print(&render(&titles, &rows));
}

/// `spoke-control node …`
pub async fn node(context: &Context, command: NodeCommand) -> Outcome {
    let (store, actor) = (&context.store, &context.actor);
    let change = |change: NodeChange, id: NodeId| async move {
        operate::set_node(store, &id, &change, actor, now_ms()).await.map_err(Failure::from)
    };
    match command {
        NodeCommand::List { state } => {
            let wanted = match state.as_deref().map(str::parse::<NodeState>) {
                Some(Err(())) => {
                    return Err(Failure::BadInput("--state is expected, pending, active or removed".into()));
                }
                Some(Ok(state)) => Some(state),
                None => None,
            };
            let mut all = views(context, None).await?;
            all.retain(|v| wanted.map_or(v.state != NodeState::Removed, |w| v.state == w));
            nodes(context, &all);
        }
        NodeCommand::Show { id } => {
            let found = views(context, Some(&id)).await?.pop();
            let found = found.ok_or_else(|| Failure::BadInput(format!("there is no node {id}")))?;
            print(&json(&found));
        }
        NodeCommand::Approve { id } => operate::approve(store, &id, actor, now_ms()).await?,
        NodeCommand::Remove { id, yes } => {
            confirm(&format!("take {id} out of the fleet"), yes)?;
            operate::remove(store, &id, actor, now_ms()).await?;
        }
        NodeCommand::Rename { id, label } => {
            change(NodeChange { label: Some(label), ..NodeChange::default() }, id).await?;
        }
        NodeCommand::Override { id, listen_port, mtu, keepalive, dns } => {
            let overrides = Overrides {
                override_listen_port: listen_port,
                override_mtu: mtu,
                override_keepalive: keepalive,
                override_dns: dns,
            };
            change(NodeChange { overrides: Some(overrides), ..NodeChange::default() }, id).await?;
        }
        NodeCommand::Isolate { id, off } => {
            change(NodeChange { isolated: Some(!off), ..NodeChange::default() }, id).await?;
        }
    }
    Ok(())
}

/// `spoke-control token …`
pub async fn token(context: &Context, command: TokenCommand) -> Outcome {
    let (store, actor) = (&context.store, &context.actor);
    match command {
        TokenCommand::Create { network, uses, expires_in, node, note } => {
            let lives = expires_in.as_deref().map(seconds).transpose()?;
            let expires_ms =
                lives.map(|s| now_ms().saturating_add(i64::try_from(s.saturating_mul(1000)).unwrap_or(i64::MAX)));
            let new = NewToken { network, node, note, max_uses: uses, expires_ms };
            let (id, token) = operate::add_token(store, &new, actor, now_ms()).await?;
            if context.json {
                print(&json(&serde_json::json!({"id": id, "token": token.reveal()})));
            } else {
                print(&format!("{}\n", token.reveal()));
            }
        }
        TokenCommand::List => {
            let tokens = store.read().await?.tokens().await?;
            if context.json {
                print(&json(&tokens));
                return Ok(());
            }
            let dash = || "-".to_owned();
            let row = |t: &crate::control::store::token::Token| {
                vec![
                    t.id.clone(),
                    t.network.clone(),
                    t.node.as_ref().map_or_else(dash, ToString::to_string),
                    format!("{}/{}", t.uses, t.max_uses),
                    t.expires_at.clone().unwrap_or_else(dash),
                    t.revoked_at.clone().unwrap_or_else(dash),
                    t.note.clone().unwrap_or_else(dash),
                ]
            };
            let rows: Vec<_> = tokens.iter().map(row).collect();
            print(&render(&["TOKEN", "NETWORK", "NODE", "USES", "EXPIRES", "REVOKED", "NOTE"], &rows));
        }
        TokenCommand::Revoke { id } => operate::revoke_token(store, &id, actor, now_ms()).await?,
    }
    Ok(())
}

/// `spoke-control network …`
pub async fn network(context: &Context, command: NetworkCommand) -> Outcome {
    let (store, actor) = (&context.store, &context.actor);
    match command {
        NetworkCommand::Create { name, interface, values } => {
            let mut network = Network::new(&name, None, None, interface);
            values.change()?.apply(&mut network);
            operate::add_network(store, &network, actor, now_ms()).await?;
        }
        NetworkCommand::Set { name, values } => {
            let change = values.change()?;
            operate::set_network(store, &name, |n| change.apply(n), actor, now_ms()).await?;
        }
        NetworkCommand::List => {
            let mut tx = store.read().await?;
            let networks = tx.networks().await?;
            if context.json {
                print(&json(&networks));
                return Ok(());
            }
            let mut rows = Vec::new();
            for n in &networks {
                let stats = tx.pool_stats(n).await?;
                let pools: Vec<String> = n.pool4.iter().chain(&n.pool6).map(ToString::to_string).collect();
                rows.push(vec![
                    n.name.clone(),
                    pools.join(","),
                    format!(
                        "{} of {}",
                        stats.allocated_addresses,
                        stats.allocated_addresses + stats.available_addresses
                    ),
                    n.interface.to_string(),
                    if n.forwarding { "yes" } else { "no" }.to_owned(),
                    if n.approval { "yes" } else { "no" }.to_owned(),
                    n.access.as_str().to_owned(),
                ]);
            }
            print(&render(&["NETWORK", "POOLS", "LEASED", "INTERFACE", "FORWARDING", "APPROVAL", "ACCESS"], &rows));
        }
    }
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
            let mut all = views(context, None).await?;
            all.retain(|v| v.role == crate::config::node::Role::Hub && v.state != NodeState::Removed);
            nodes(context, &all);
        }
    }
    Ok(())
}

/// `spoke-control signing-key …`
pub async fn signing_key(context: &Context, command: SigningKeyCommand) -> Outcome {
    let store = &context.store;
    match command {
        SigningKeyCommand::List => {
            let keys = store.read().await?.signing_keys().await?;
            let state = |active| if active { "active" } else { "retired" };
            if context.json {
                let list: Vec<_> =
                    keys.iter().map(|k| serde_json::json!({"key": k.public, "state": state(k.active)})).collect();
                print(&json(&list));
            } else {
                let rows: Vec<_> =
                    keys.iter().map(|k| vec![k.public.to_string(), state(k.active).to_owned()]).collect();
                print(&render(&["KEY", "STATE"], &rows));
            }
        }
        SigningKeyCommand::Add => {
            let master = MasterKey::load_or_make(&serve::master_path(&context.config))?;
            let mut tx = store.write().await?;
            let active = tx.signing_keys().await?.iter().filter(|k| k.active).count();
            if active >= crate::enroll::document::MAX_SIGNING_KEYS {
                return Err(Failure::BadInput(format!("{active} keys are in service already: retire one first")));
            }
            let key = SigningKeys::add(&mut tx, &master, now_ms()).await?;
            let entity = key.to_string();
            tx.audit(now_ms(), &context.actor, "add", ("signing_key", &entity), serde_json::Value::Null).await?;
            tx.commit().await?;
            print(&format!("{key}\n"));
        }
        SigningKeyCommand::Retire { key, yes } => {
            confirm("nodes that have not heard of another key yet will refuse every document; retire it", yes)?;
            let mut tx = store.write().await?;
            if !tx.retire_signing_key(key).await? {
                return Err(Failure::BadInput("this key is not in service, or it is the last one".into()));
            }
            let entity = key.to_string();
            tx.audit(now_ms(), &context.actor, "retire", ("signing_key", &entity), serde_json::Value::Null).await?;
            tx.commit().await?;
        }
    }
    Ok(())
}

/// `spoke-control audit`
pub async fn audit(context: &Context, args: AuditArgs) -> Outcome {
    let filter = Filter { entity_id: args.entity, limit: args.limit.clamp(1, 10_000), ..Filter::default() };
    let records = context.store.read().await?.audit_records(&filter).await?;
    if context.json {
        print(&json(&records));
        return Ok(());
    }
    let row = |r: &crate::control::store::audit::Record| {
        vec![
            r.timestamp.clone(),
            r.user.clone(),
            r.action.clone(),
            format!("{} {}", r.entity_type, r.entity_id),
            r.details.to_string(),
        ]
    };
    let rows: Vec<_> = records.iter().map(row).collect();
    print(&render(&["TIME", "WHO", "DID", "TO", "DETAILS"], &rows));
    Ok(())
}

/// `spoke-control status`
pub async fn status(context: &Context) -> Outcome {
    let overview = context.store.read().await?.overview(now_ms()).await?;
    if context.json {
        print(&json(&overview));
        return Ok(());
    }
    let count = |state: &str| overview.nodes.get(state).copied().unwrap_or(0);
    print(&format!(
        "nodes: {} active, {} pending, {} expected, {} removed\nreporting within twenty minutes: {}\n",
        count("active"),
        count("pending"),
        count("expected"),
        count("removed"),
        overview.reporting
    ));
    Ok(())
}
