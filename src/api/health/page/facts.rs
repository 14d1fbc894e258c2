//! What the page shows, and what its address asks for.
use crate::health::fold::Moment;
use crate::health::summary::Snapshot;
use percent_encoding::percent_decode_str;
use spoke_config::effective::Effective;
use spoke_model::key::PublicKey;
use spoke_model::time::Boot;
use spoke_net::ages::Handshakes;
use spoke_net::plan::Plan;
use spoke_net::state::{Desired, Observed};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A step that was applied or refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PastStep {
    /// When.
    pub at: Boot,
    /// It was made against drift.
    pub repair: bool,
    /// The step, with the kernel's error if it was refused.
    pub text: String,
    /// The kernel refused it.
    pub refused: bool,
}

/// Facts that only the page needs.
#[derive(Clone, Debug, Default)]
pub struct Details {
    /// The configuration in force.
    pub effective: Option<Arc<Effective>>,
    /// Desired state.
    pub desired: Arc<Desired>,
    /// Observed state.
    pub observed: Arc<Observed>,
    /// An earlier one, to measure rates by.
    pub before: Option<Arc<Observed>>,
    /// Times of the handshakes.
    pub handshakes: Arc<Handshakes>,
    /// Remaining differences.
    pub left: Arc<Plan>,
    /// The last steps, oldest first.
    pub steps: Vec<PastStep>,
}

/// Everything.
#[derive(Debug)]
pub struct Facts<'a> {
    /// The facts of all endpoints.
    pub snapshot: &'a Snapshot,
    /// Now.
    pub at: &'a Moment,
    /// Those of the page alone.
    pub details: &'a Details,
    /// Names of peers.
    pub names: BTreeMap<PublicKey, &'a str>,
    /// What is asked for.
    pub query: Query,
}

/// The order of the peers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// The busiest, then those with the newest handshake.
    #[default]
    Activity,
    /// By name, those without one last.
    Name,
    /// By bytes received and sent.
    Traffic,
}

/// The query of the page's address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// Only peers with this text in name, key, endpoint or networks; in lower case.
    pub filter: String,
    /// Order of the peers.
    pub order: Order,
    /// Peers left out at the beginning.
    pub from: usize,
    /// Only what changes.
    pub part: bool,
}

impl Query {
    /// Reads a query; what is unknown is left out.
    pub fn parse(query: Option<&str>) -> Self {
        let mut out = Self::default();
        for (name, value) in query.unwrap_or_default().split('&').map(|p| p.split_once('=').unwrap_or((p, ""))) {
            match name {
                "q" => {
                    let spaced = value.replace('+', " ");
                    out.filter = percent_decode_str(&spaced).decode_utf8_lossy().trim().to_lowercase();
                }
                "sort" if value == "name" => out.order = Order::Name,
                "sort" if value == "traffic" => out.order = Order::Traffic,
                "from" => out.from = value.parse().unwrap_or(0),
                "part" => out.part = true,
                _ => {}
            }
        }
        out
    }
}

impl Order {
    /// As in the query.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Activity => "",
            Self::Name => "name",
            Self::Traffic => "traffic",
        }
    }
}

impl<'a> Facts<'a> {
    /// `details` with the names of its configuration.
    pub fn new(snapshot: &'a Snapshot, at: &'a Moment, details: &'a Details, query: Query) -> Self {
        let names = details.effective.as_deref().map(names).unwrap_or_default();
        Self { snapshot, at, details, names, query }
    }
}

/// The configured names of hubs and peers.
pub fn names(effective: &Effective) -> BTreeMap<PublicKey, &str> {
    let peers = effective
        .interfaces()
        .flat_map(|i| i.peers())
        .filter_map(|p| Some((p.public_key, p.name.as_deref().or(p.node_id.as_ref().map(|n| n.as_str()))?)));
    peers.chain(effective.hubs().iter().map(|h| (h.public_key, h.name.as_str()))).collect()
}
