//! `spoke-control node`.
use super::Context;
use super::invitation::{Created, HandOut, hand_out};
use super::prompt::confirm;
use super::table::{json, pairs, render};
use crate::api::view::{NodeDetail, NodeTestView, NodeView, all};
use crate::clock::now_ms;
use crate::registry::node_change::NodeChange;
use crate::registry::nodes::NodeAnnouncement;
use crate::registry::{networks, node_test, nodes, tokens};
use crate::selector::Selector;
use crate::store::node::{NodeState, OverrideName, Overrides};
use crate::store::node_status::NodeQuery;
use clap::Subcommand;
use ipnet::IpNet;
use spoke_command::{Failure, Outcome, print};
use spoke_config::node::Role;
use spoke_enroll::wire::Outcome as ReportOutcome;
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
        /// Only those with these labels, such as site=berlin,model!=pi3
        #[arg(long)]
        selector: Option<Selector>,
        /// Only those of this network
        #[arg(long)]
        network: Option<String>,
        /// Only those with this text in the id or the label
        #[arg(long)]
        filter: Option<String>,
    },
    /// Show one node
    Show {
        /// Node id
        id: NodeId,
    },
    /// Probe a node: exit code 1 if it is not reachable, or not healthy
    Test {
        /// Node id
        id: NodeId,
    },
    /// Approve a pending node
    Approve {
        /// Node id
        id: NodeId,
    },
    /// Remove a node from the fleet
    Remove {
        /// Node id
        id: NodeId,
        /// Do not ask
        #[arg(long)]
        yes: bool,
        /// Also revoke the token it was enrolled with
        #[arg(long)]
        revoke_token: bool,
    },
    /// Set labels, by which nodes are selected
    Label {
        /// Node id
        id: NodeId,
        /// key=value sets a label, key- removes it
        #[arg(required = true)]
        changes: Vec<String>,
    },
    /// Change the name of a node that people read
    Rename {
        /// Node id
        id: NodeId,
        /// Its label; empty removes it
        label: String,
    },
    /// Announce a node; prints the token that enrols it without approval
    Announce {
        /// Node id
        id: NodeId,
        /// Its network; not needed where there is only one
        #[arg(long)]
        network: Option<String>,
        /// For people
        #[arg(long)]
        label: Option<String>,
        /// The device with this key takes the name with any token of the network: `spoke key fingerprint` prints it there
        #[arg(long, value_name = "SHA256")]
        fingerprint: Option<String>,
        /// How its token is handed out
        #[command(flatten)]
        how: HandOut,
    },
    /// Set or remove overrides of a node; the others stay
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
        /// Overrides to remove
        #[arg(long, value_delimiter = ',', value_name = "NAME")]
        unset: Vec<OverrideName>,
    },
    /// Disable a node: it stays enrolled and is a peer of no hub
    Disable {
        /// Node id
        id: NodeId,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Enable a disabled node
    Enable {
        /// Node id
        id: NodeId,
    },
    /// Replace a later generation that a node holds and this control plane did not give it
    TakeBack {
        /// Node id
        id: NodeId,
        /// The generation the node holds, as the log of `serve` names it
        #[arg(long)]
        generation: u64,
    },
    /// Cut a node off from other nodes
    Isolate {
        /// Node id
        id: NodeId,
        /// End the isolation
        #[arg(long)]
        off: bool,
    },
}

/// Every node by id.
pub(super) async fn views(context: &Context) -> Result<Vec<NodeView>, Failure> {
    Ok(all(context.store.read().await?.node_statuses(&NodeQuery::default(), i64::MAX).await?))
}

fn dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |v| v.to_string())
}

/// One word, from the last report.
fn health(v: &NodeView) -> String {
    match (v.healthy, v.outcome) {
        (_, Some(failed @ (ReportOutcome::Reverted | ReportOutcome::Refused))) => failed.as_str().to_owned(),
        (Some(true), _) => "healthy".to_owned(),
        (Some(false), _) => "unhealthy".to_owned(),
        (None, _) => "-".to_owned(),
    }
}

/// Longest reason in a list, in characters.
const MAX_REASON: usize = 80;

/// Why the node is not as it should be: its state was not kept, or its most severe condition.
fn why(v: &NodeView) -> String {
    let Some(reason) = v.reason.as_ref().or(v.conditions.first()) else { return "-".to_owned() };
    match reason.char_indices().nth(MAX_REASON) {
        Some((at, _)) => format!("{}…", &reason[..at]),
        None => reason.clone(),
    }
}

/// One word: whether its hubs admit it.
fn access(v: &NodeView) -> String {
    match v.access.as_deref() {
        _ if !v.enabled => "disabled".to_owned(),
        None if v.state == NodeState::Active => "open".to_owned(),
        None => "-".to_owned(),
        Some(code) if code == Reason::AccessGranted.code() => "granted".to_owned(),
        Some(code) => code.to_ascii_lowercase().replace('_', "-"),
    }
}

/// Prints a table of nodes, or their JSON.
pub(super) fn print_nodes(context: &Context, views: &[NodeView]) {
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
            why(v),
        ]
    };
    let rows: Vec<_> = views.iter().map(row).collect();
    let titles = [
        "NODE",
        "LABEL",
        "ROLE",
        "STATE",
        "NETWORK",
        "ADDRESS",
        "ACCESS",
        "HEALTH",
        "GENERATION",
        "LAST SEEN",
        "REASON",
    ];
    print(&render(&titles, &rows));
}

async fn detail(context: &Context, id: &NodeId) -> Result<NodeDetail, Failure> {
    let found = context.store.read().await?.node_record(id).await?;
    Ok(found.ok_or_else(|| Failure::BadInput(format!("there is no node {id}")))?.into())
}

/// The overrides in one line.
fn overrides_of(v: &NodeView) -> String {
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
    if overrides.is_empty() { "-".to_owned() } else { overrides.join(", ") }
}

fn generation_of(v: &NodeView) -> String {
    format!("{} wanted, {} in force", v.generation, dash(v.observed_generation))
}

/// Everything about one node, by name.
fn lines(d: &NodeDetail) -> Vec<(&'static str, String)> {
    let v = &d.view;
    let hardware = d.capabilities.as_ref().map(|c| {
        format!(
            "{} cpu, {} MB{}",
            c.cpu_cores,
            c.memory_mb,
            c.arch.as_ref().map(|a| format!(", {a}")).unwrap_or_default()
        )
    });
    let labels: Vec<String> = v.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    let metadata: Vec<String> = d.metadata.iter().map(|(k, v)| format!("{k}={v}")).collect();
    let connected =
        d.registration.as_ref().map(|r| format!("{} by {} since {}", r.hub_endpoint, r.interface_name, r.received_at));
    vec![
        ("node", v.id.to_string()),
        ("label", dash(v.label.as_ref())),
        ("labels", if labels.is_empty() { "-".to_owned() } else { labels.join(", ") }),
        ("role", format!("{:?}", v.role).to_lowercase()),
        ("state", v.state.as_str().to_owned()),
        ("network", v.network.clone()),
        ("addresses", if v.addresses.is_empty() { "-".to_owned() } else { v.addresses.join(", ") }),
        ("wireguard key", dash(v.wireguard_public_key)),
        ("fingerprint", dash(v.fingerprint.as_ref())),
        ("endpoint", dash(v.endpoint.as_ref())),
        ("access", access(v)),
        ("token", dash(v.token_id.as_ref())),
        ("isolated", if v.isolated { "yes" } else { "no" }.to_owned()),
        ("overrides", overrides_of(v)),
        ("generation", generation_of(v)),
        ("outcome", dash(v.outcome.map(ReportOutcome::as_str))),
        ("reason", dash(v.reason.as_ref())),
        ("health", health(v)),
        ("conditions", if v.conditions.is_empty() { "-".to_owned() } else { v.conditions.join("; ") }),
        ("drift", dash(d.drift)),
        ("last seen", dash(v.last_seen.as_ref())),
        ("connected", dash(connected)),
        ("version", dash(v.version.as_ref())),
        ("update", dash(v.update.as_ref())),
        ("hardware", dash(hardware)),
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
    // A serving process holds the node's long-poll and reports its return.
    let test = tokio::select! {
        test = node_test::run(&context.store, id) => test?,
        never = context.store.listen() => match never {},
    };
    let passed = test.passed();
    let view = NodeTestView::from(test);
    if context.json {
        print(&json(&view));
    } else if passed {
        print(&format!("{}\n", view.message));
    }
    if passed { Ok(()) } else { Err(Failure::Failed(anyhow::anyhow!(view.message))) }
}

/// `spoke-control node …`
pub async fn node(context: &Context, command: NodeCommand) -> Outcome {
    let (store, actor) = (&context.store, &context.actor);
    let (id, change) = match command {
        NodeCommand::List { state, selector, network, filter } => {
            let wanted = match state.as_deref().map(str::parse::<NodeState>) {
                Some(Err(_)) => {
                    return Err(Failure::BadInput("--state is expected, pending, active or removed".into()));
                }
                Some(Ok(state)) => Some(state),
                None => None,
            };
            let query = NodeQuery {
                state: wanted,
                selector: selector.as_ref(),
                network: network.as_deref(),
                filter: filter.as_deref(),
                ..NodeQuery::default()
            };
            let mut listed: Vec<NodeView> = all(context.store.read().await?.node_statuses(&query, i64::MAX).await?);
            listed.retain(|v| wanted.is_some() || v.state != NodeState::Removed);
            print_nodes(context, &listed);
            return Ok(());
        }
        NodeCommand::Label { id, changes } => {
            let mut labels = store.read().await?.labels(&id).await?;
            for change in &changes {
                match (change.split_once('='), change.strip_suffix('-')) {
                    (Some((key, value)), _) => labels.insert(key.to_owned(), value.to_owned()),
                    (None, Some(key)) => labels.remove(key),
                    (None, None) => {
                        return Err(Failure::BadInput(format!(
                            "'{change}' is no label: key=value sets one, key- removes it"
                        )));
                    }
                };
            }
            nodes::set_labels(store, &id, &labels, actor, now_ms()).await?;
            return print_changed(context, &id).await;
        }
        NodeCommand::Show { id } => return show(context, &id).await,
        NodeCommand::Test { id } => return test(context, &id).await,
        NodeCommand::Approve { id } => {
            nodes::approve(store, &id, actor, now_ms()).await?;
            return print_changed(context, &id).await;
        }
        NodeCommand::Remove { id, yes, revoke_token } => {
            detail(context, &id).await?;
            confirm(&format!("remove {id} from the fleet"), yes)?;
            return remove(context, &id, revoke_token).await;
        }
        NodeCommand::Rename { id, label } => (id, NodeChange { label: Some(label), ..NodeChange::default() }),
        NodeCommand::Announce { id, network, label, fingerprint, how } => {
            how.check()?;
            let network = networks::meant(store, network, None).await?;
            let announced = NodeAnnouncement { label, fingerprint };
            let token = nodes::announce(store, &id, &network, announced, actor, now_ms()).await?;
            let shown = [("node_id".to_owned(), id.as_str().into())].into_iter().collect();
            hand_out(context, Created { token, node: Some(id), role: Role::Node }, &how, shown)?;
            return Ok(());
        }
        NodeCommand::Override { id, listen_port, mtu, keepalive, dns, endpoint_allowed_ip, unset } => {
            let set_overrides = Overrides {
                override_listen_port: listen_port,
                override_mtu: mtu,
                override_keepalive: keepalive,
                override_dns: dns,
                override_endpoint_allowed_ip: endpoint_allowed_ip,
            };
            if set_overrides.is_empty() && unset.is_empty() {
                return Err(Failure::BadInput("nothing to change: give a setting, or --unset NAME".into()));
            }
            let change = NodeChange { set_overrides, unset_overrides: unset, ..NodeChange::default() };
            nodes::change(store, &id, &change, actor, now_ms()).await?;
            return print_overrides(context, &id).await;
        }
        NodeCommand::Disable { id, yes } => {
            detail(context, &id).await?;
            confirm(&format!("disable {id}, which disconnects it until it is enabled"), yes)?;
            (id, NodeChange { enabled: Some(false), ..NodeChange::default() })
        }
        NodeCommand::TakeBack { id, generation } => {
            nodes::take_back(store, &id, generation, actor, now_ms()).await?;
            return print_changed(context, &id).await;
        }
        NodeCommand::Enable { id } => (id, NodeChange { enabled: Some(true), ..NodeChange::default() }),
        NodeCommand::Isolate { id, off } => (id, NodeChange { isolated: Some(!off), ..NodeChange::default() }),
    };
    nodes::change(store, &id, &change, actor, now_ms()).await?;
    print_changed(context, &id).await
}

/// Removes a node. The device still has its enrolling token: it is revoked, or the command that revokes it is printed.
async fn remove(context: &Context, id: &NodeId, revoke_token: bool) -> Outcome {
    let (store, actor) = (&context.store, &context.actor);
    let enrolling = tokens::enrolling(store, id, now_ms()).await?;
    if let Some((token, _)) = enrolling.as_ref().filter(|_| revoke_token) {
        tokens::revoke(store, token, actor, now_ms()).await?;
    }
    nodes::remove(store, id, actor, now_ms()).await?;
    print_changed(context, id).await?;
    if let Some((token, left)) = enrolling.filter(|_| !revoke_token && !context.json) {
        let command = &context.invocation;
        print(&format!(
            "token {token}, which enrolled {id}, is valid for {left} more enrolments; if the device is lost, revoke it:\n  {command} token revoke {token}\n"
        ));
    }
    Ok(())
}

/// Prints the overrides of a changed node.
async fn print_overrides(context: &Context, id: &NodeId) -> Outcome {
    let view = detail(context, id).await?.view;
    print(&if context.json {
        json(&view)
    } else {
        let lines =
            [("node", view.id.to_string()), ("overrides", overrides_of(&view)), ("generation", generation_of(&view))];
        pairs(&lines)
    });
    Ok(())
}

/// Prints a changed node.
pub(super) async fn print_changed(context: &Context, id: &NodeId) -> Outcome {
    let view = detail(context, id).await?.view;
    if context.json {
        print(&json(&view));
    } else {
        print_nodes(context, &[view]);
    }
    Ok(())
}
