//! `spoke-control network` and `spoke-control hub`.
use super::Context;
use super::invitation::{Created, HandOut, hand_out};
use super::node::{print_changed, print_nodes, views};
use super::prompt::{confirm, seconds};
use super::table::{json, render};
use crate::clock::now_ms;
use crate::registry::network_change::{NO_CONTRACT, NetworkChange};
use crate::registry::nodes::{HubAnnouncement, HubMove};
use crate::registry::{networks, nodes};
use crate::store::network::{Access, Network};
use crate::store::node::NodeState;
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

/// Settings of a network.
#[derive(Debug, Args)]
pub struct NetworkValues {
    /// IPv4 addresses of its nodes
    #[arg(long)]
    pool4: Option<IpNet>,
    /// IPv6 addresses of its nodes
    #[arg(long)]
    pool6: Option<IpNet>,
    /// Addresses never leased to a node
    #[arg(long, value_delimiter = ',')]
    reserved: Option<Vec<IpAddr>>,
    /// Resolvers inside the tunnel
    #[arg(long, value_delimiter = ',')]
    dns: Option<Vec<IpAddr>>,
    /// Bytes; 0: the node chooses
    #[arg(long)]
    mtu: Option<u32>,
    /// Seconds; 0 is off
    #[arg(long)]
    keepalive: Option<u16>,
    /// Whether hubs forward from node to node
    #[arg(long)]
    forwarding: Option<bool>,
    /// Whether an operator must approve each node
    #[arg(long)]
    approval: Option<bool>,
    /// Who may be a peer: open or nft
    #[arg(long)]
    access: Option<Access>,
    /// How long the address of a removed node stays unused, such as 7d
    #[arg(long)]
    quarantine: Option<String>,
    /// A TOML file with the grants section for nodes without one of their own; none removes it
    #[arg(long, value_name = "FILE")]
    grants: Option<PathBuf>,
}

impl NetworkValues {
    fn change(self) -> Result<NetworkChange, Failure> {
        let quarantine_secs = self.quarantine.as_deref().map(seconds).transpose()?;
        let grants = self.grants.as_deref().map(read_policy).transpose()?;
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

fn read_policy(path: &Path) -> Result<GrantsPolicy, Failure> {
    if path.as_os_str() == "none" {
        return Ok(GrantsPolicy::default());
    }
    let bad = |problem: &dyn std::fmt::Display| Failure::BadInput(format!("--grants {}: {problem}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|e| bad(&e))?;
    let policy = GrantsPolicy::from_toml(&text).map_err(|e| bad(&e))?;
    if policy.is_empty() {
        return Err(bad(&"the file is empty; `--grants none` removes the policy"));
    }
    Ok(policy)
}

/// `spoke-control network …`
#[derive(Debug, Subcommand)]
pub enum NetworkCommand {
    /// Create a network
    Create {
        /// Its name: a-z 0-9 -
        name: String,
        /// Kernel name of the interface on its nodes
        #[arg(long, default_value = "wg0")]
        interface: IfName,
        /// Its settings
        #[command(flatten)]
        values: NetworkValues,
    },
    /// List networks
    List,
    /// Change a network
    Set {
        /// Its name
        name: String,
        /// The settings to change
        #[command(flatten)]
        values: NetworkValues,
    },
    /// Remove a network that has no nodes, with its tokens
    Remove {
        /// Its name
        name: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

/// `spoke-control hub …`
#[derive(Debug, Subcommand)]
pub enum HubCommand {
    /// Announce a hub; prints the token that enrols it
    Add {
        /// Its node id
        id: NodeId,
        /// Its network; not needed where there is only one
        #[arg(long)]
        network: Option<String>,
        /// Where nodes reach it, HOST:PORT
        #[arg(long)]
        endpoint: HostPort,
        /// Its address inside the tunnel; the first free one if not given
        #[arg(long)]
        address: Option<IpAddr>,
        /// The device with this key takes the name with any token of the network: `spoke key fingerprint` prints it there
        #[arg(long, value_name = "SHA256")]
        fingerprint: Option<String>,
        /// How its token is handed out
        #[command(flatten)]
        how: HandOut,
    },
    /// Move a disabled hub; enabling it announces the new endpoint
    Move {
        /// Its node id
        id: NodeId,
        /// Where nodes reach it, HOST:PORT
        #[arg(long)]
        endpoint: HostPort,
        /// The UDP port it listens on, if a router forwards another one; that of the endpoint if not given
        #[arg(long)]
        listen_port: Option<u16>,
        /// Move it although nodes may still connect to it where it was: they lose it until they fetch their next state
        #[arg(long)]
        lose_nodes: bool,
    },
    /// List hubs
    List,
}

fn check_contract(context: &Context, change: &NetworkChange) -> Outcome {
    if change.needs_contract() && context.config.grants.is_none() {
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
            let change = values.change()?;
            check_contract(context, &change)?;
            change.apply(&mut network);
            networks::create(store, &network, actor, now_ms()).await?;
            list(context, &[network]).await
        }
        NetworkCommand::Set { name, values } => {
            let change = values.change()?;
            check_contract(context, &change)?;
            let network = networks::change(store, &name, |n| change.apply(n), actor, now_ms()).await?;
            list(context, &[network]).await
        }
        NetworkCommand::Remove { name, yes } => {
            confirm(&format!("remove network {name} and revoke its tokens"), yes)?;
            networks::remove(store, &name, actor, now_ms()).await?;
            if context.json {
                print(&json(&serde_json::json!({"name": name})));
            }
            Ok(())
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
        HubCommand::Add { id, network, endpoint, address, fingerprint, how } => {
            how.check()?;
            let (store, actor) = (&context.store, &context.actor);
            let network = networks::meant(store, network, None).await?;
            let announced = HubAnnouncement { endpoint, address, fingerprint };
            let token = nodes::announce_hub(store, &id, &network, &announced, actor, now_ms()).await?;
            let shown = [("node_id".to_owned(), id.as_str().into())].into_iter().collect();
            hand_out(context, Created { token, node: Some(id), role: Role::Hub }, &how, shown)?;
        }
        HubCommand::Move { id, endpoint, listen_port, lose_nodes } => {
            let (store, actor) = (&context.store, &context.actor);
            let to = HubMove { endpoint, listen_port, lose_nodes };
            nodes::move_hub(store, &id, &to, actor, now_ms()).await?;
            print_changed(context, &id).await?;
        }
        HubCommand::List => {
            let mut all = views(context).await?;
            all.retain(|v| v.role == Role::Hub && v.state != NodeState::Removed);
            print_nodes(context, &all);
        }
    }
    Ok(())
}
