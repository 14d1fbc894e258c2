//! `spoke-control node`: who is in the fleet.
use super::Context;
use super::fleet::confirm;
use super::table::{json, pairs, render};
use crate::api::now_ms;
use crate::registry::operate;
use crate::registry::operate::NodeChange;
use crate::registry::test;
use crate::store::node::{NodeState, Overrides};
use crate::store::view::{NodeDetail, NodeView};
use clap::Subcommand;
use ipnet::IpNet;
use spoke_command::{Failure, Outcome, print};
use spoke_grants::policy::Reason;
use spoke_model::node_id::NodeId;
use std::net::IpAddr;

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
    /// Call a node: whether it can be reached now; status 1 if not, or if it is not healthy
    Test {
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
        /// Networks behind its hub
        #[arg(long, value_delimiter = ',')]
        endpoint_allowed_ip: Option<Vec<IpNet>>,
    },
    /// Switch a node off: it stays enrolled and is nobody's peer
    Disable {
        /// Node id
        id: NodeId,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Switch a node on again
    Enable {
        /// Node id
        id: NodeId,
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

/// Nodes for people or scripts, by id.
pub(super) async fn views(context: &Context) -> Result<Vec<NodeView>, Failure> {
    Ok(context.store.read().await?.node_views(None, "", i64::MAX).await?)
}

fn dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |v| v.to_string())
}

/// In one word, from what the node said last.
fn health(v: &NodeView) -> String {
    match (v.healthy, v.outcome.as_deref()) {
        (_, Some(bad @ ("reverted" | "refused"))) => bad.to_owned(),
        (Some(true), _) => "healthy".to_owned(),
        (Some(false), _) => "unhealthy".to_owned(),
        (None, _) => "-".to_owned(),
    }
}

/// In one word, whether its hubs let it in.
fn access(v: &NodeView) -> String {
    match v.access.as_deref() {
        _ if !v.enabled => "disabled".to_owned(),
        None if v.state == NodeState::Active => "open".to_owned(),
        None => "-".to_owned(),
        Some(code) if code == Reason::AccessGranted.code() => "granted".to_owned(),
        Some(code) => code.to_ascii_lowercase().replace('_', "-"),
    }
}

/// A table of nodes, or their JSON.
pub(super) fn nodes(context: &Context, views: &[NodeView]) {
    if context.json {
        return print(&json(&views));
    }
    let row = |v: &NodeView| {
        vec![
            v.id.to_string(),
            dash(v.label.as_ref()),
            format!("{:?}", v.role).to_lowercase(),
            v.state.as_str().to_owned(),
            v.network.clone(),
            dash(v.addresses.first()),
            access(v),
            health(v),
            format!("{}/{}", dash(v.observed_generation), v.generation),
            dash(v.last_seen.as_ref()),
        ]
    };
    let rows: Vec<_> = views.iter().map(row).collect();
    let titles =
        ["NODE", "LABEL", "ROLE", "STATE", "NETWORK", "ADDRESS", "ACCESS", "HEALTH", "GENERATION", "LAST SEEN"];
    print(&render(&titles, &rows));
}

async fn detail(context: &Context, id: &NodeId) -> Result<NodeDetail, Failure> {
    let found = context.store.read().await?.node_detail(id).await?;
    found.ok_or_else(|| Failure::BadInput(format!("there is no node {id}")))
}

/// Everything about one node, in lines for people.
fn lines(d: &NodeDetail) -> Vec<(&'static str, String)> {
    let v = &d.view;
    let o = &v.overrides;
    let mut overrides = Vec::new();
    overrides.extend(o.override_listen_port.map(|p| format!("listen port {p}")));
    overrides.extend(o.override_mtu.map(|m| format!("mtu {m}")));
    overrides.extend(o.override_keepalive.map(|k| format!("keepalive {k}")));
    let list = |l: &[String]| l.join(",");
    overrides.extend(
        o.override_dns
            .as_ref()
            .map(|d| format!("dns {}", list(&d.iter().map(ToString::to_string).collect::<Vec<_>>()))),
    );
    overrides.extend(
        o.override_endpoint_allowed_ip
            .as_ref()
            .map(|d| format!("behind the hub {}", list(&d.iter().map(ToString::to_string).collect::<Vec<_>>()))),
    );
    let words = if overrides.is_empty() { "-".to_owned() } else { overrides.join(", ") };
    let can = d.capabilities.as_ref().map(|c| {
        format!(
            "{} cpu, {} MB{}",
            c.cpu_cores,
            c.memory_mb,
            c.arch.as_ref().map(|a| format!(", {a}")).unwrap_or_default()
        )
    });
    let metadata: Vec<String> = d.metadata.iter().map(|(k, v)| format!("{k}={v}")).collect();
    let connected =
        d.registration.as_ref().map(|r| format!("{} by {} since {}", r.hub_endpoint, r.interface_name, r.received_at));
    vec![
        ("node", v.id.to_string()),
        ("label", dash(v.label.as_ref())),
        ("role", format!("{:?}", v.role).to_lowercase()),
        ("state", v.state.as_str().to_owned()),
        ("network", v.network.clone()),
        ("addresses", if v.addresses.is_empty() { "-".to_owned() } else { v.addresses.join(", ") }),
        ("wireguard key", dash(v.wireguard_public_key)),
        ("endpoint", dash(v.endpoint.as_ref())),
        ("access", access(v)),
        ("token", dash(v.token_id.as_ref())),
        ("isolated", if v.isolated { "yes" } else { "no" }.to_owned()),
        ("overrides", words),
        ("generation", format!("{} wanted, {} in force", v.generation, dash(v.observed_generation))),
        ("outcome", dash(v.outcome.as_ref())),
        ("reason", dash(v.reason.as_ref())),
        ("health", health(v)),
        ("drift", dash(d.drift)),
        ("last seen", dash(v.last_seen.as_ref())),
        ("connected", dash(connected)),
        ("version", dash(v.version.as_ref())),
        ("update", dash(v.update.as_ref())),
        ("hardware", dash(can)),
        ("metadata", if metadata.is_empty() { "-".to_owned() } else { metadata.join(", ") }),
        ("enrolled", dash(v.enrolled_at.as_ref())),
    ]
}

async fn show(context: &Context, id: &NodeId) -> Outcome {
    let found = detail(context, id).await?;
    print(&if context.json { json(&found) } else { pairs(&lines(&found)) });
    Ok(())
}

async fn test(context: &Context, id: &NodeId) -> Outcome {
    // The node is held by a process that serves: its return is heard from there.
    let seen = tokio::select! {
        seen = test::node(&context.store, id) => seen?,
        never = context.store.listen() => match never {},
    };
    if context.json {
        print(&json(&seen));
    } else if seen.is_good() {
        print(&format!("{}\n", seen.message));
    }
    if seen.is_good() { Ok(()) } else { Err(Failure::Failed(anyhow::anyhow!(seen.message))) }
}

/// `spoke-control node …`
pub async fn node(context: &Context, command: NodeCommand) -> Outcome {
    let (store, actor) = (&context.store, &context.actor);
    let (id, change) = match command {
        NodeCommand::List { state } => {
            let wanted = match state.as_deref().map(str::parse::<NodeState>) {
                Some(Err(())) => {
                    return Err(Failure::BadInput("--state is expected, pending, active or removed".into()));
                }
                Some(Ok(state)) => Some(state),
                None => None,
            };
            let mut all = views(context).await?;
            all.retain(|v| wanted.map_or(v.state != NodeState::Removed, |w| v.state == w));
            nodes(context, &all);
            return Ok(());
        }
        NodeCommand::Show { id } => return show(context, &id).await,
        NodeCommand::Test { id } => return test(context, &id).await,
        NodeCommand::Approve { id } => {
            operate::approve(store, &id, actor, now_ms()).await?;
            return changed(context, &id).await;
        }
        NodeCommand::Remove { id, yes } => {
            detail(context, &id).await?;
            confirm(&format!("take {id} out of the fleet"), yes)?;
            operate::remove(store, &id, actor, now_ms()).await?;
            return changed(context, &id).await;
        }
        NodeCommand::Rename { id, label } => (id, NodeChange { label: Some(label), ..NodeChange::default() }),
        NodeCommand::Override { id, listen_port, mtu, keepalive, dns, endpoint_allowed_ip } => {
            let overrides = Overrides {
                override_listen_port: listen_port,
                override_mtu: mtu,
                override_keepalive: keepalive,
                override_dns: dns,
                override_endpoint_allowed_ip: endpoint_allowed_ip,
            };
            (id, NodeChange { overrides: Some(overrides), ..NodeChange::default() })
        }
        NodeCommand::Disable { id, yes } => {
            detail(context, &id).await?;
            confirm(&format!("cut {id} off until it is enabled again"), yes)?;
            (id, NodeChange { enabled: Some(false), ..NodeChange::default() })
        }
        NodeCommand::Enable { id } => (id, NodeChange { enabled: Some(true), ..NodeChange::default() }),
        NodeCommand::Isolate { id, off } => (id, NodeChange { isolated: Some(!off), ..NodeChange::default() }),
    };
    operate::set_node(store, &id, &change, actor, now_ms()).await?;
    changed(context, &id).await
}

/// Shows what has become of a node.
async fn changed(context: &Context, id: &NodeId) -> Outcome {
    let view = detail(context, id).await?.view;
    if context.json {
        print(&json(&view));
    } else {
        nodes(context, &[view]);
    }
    Ok(())
}
