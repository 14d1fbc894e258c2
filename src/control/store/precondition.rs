//! The condition under which an operator's change is made.
use crate::version::IfMatch;
use spoke_model::node_id::NodeId;

/// What operators edit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edited {
    /// The settings and labels of a node or hub.
    Node(NodeId),
    /// A network.
    Network(String),
    /// The desired release of a network, or of one node in it.
    Release(String, Option<NodeId>),
}

/// A change is made only while this holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Precondition {
    /// Of what.
    pub edited: Edited,
    /// In which version.
    pub if_match: IfMatch,
}
