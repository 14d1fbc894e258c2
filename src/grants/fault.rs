//! What an endpoint did wrong, and what follows from it.
use super::abi::Malformed;
use super::jsonrpc::Refusal;
use super::trie::BadProof;
use alloy_primitives::B256;
use std::time::Duration;

/// Why an endpoint's answer does not count.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointFault {
    /// It was unreachable, or its answer could not be read.
    #[error("{0}")]
    NoAnswer(String),
    /// It answered only a part of the batch.
    #[error("it left a question unanswered")]
    Partial,
    /// It refused.
    #[error("it refused: {} ({})", .0.message, .0.code)]
    Refused(Refusal),
    /// Its answer does not have the expected form.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// It is behind the newest known block.
    #[error("it is behind: at height {0}")]
    Behind(u64),
    /// Its newest height does not increase.
    #[error("it is stuck: its newest block is {height} for {} s", .since.as_secs())]
    Stuck {
        /// Its newest height.
        height: u64,
        /// How long this has been its newest height.
        since: Duration,
    },
    /// It reported a block with a wrong height.
    #[error("it reported block {hash} at height {claimed}; its height is {number}")]
    FalseHeight {
        /// The block.
        hash: B256,
        /// The reported height.
        claimed: u64,
        /// The height by a quorum.
        number: u64,
    },
    /// Its final blocks stand still while those of a quorum advance.
    #[error("its newest final block is {height} for {} s; that of a quorum is {quorum}", .since.as_secs())]
    FinalStuck {
        /// Its newest final height.
        height: u64,
        /// How long this has been its newest final height.
        since: Duration,
        /// The newest final height of a quorum.
        quorum: u64,
    },
    /// A quorum has another block at the height of its newest final one.
    #[error("a quorum has another block at height {height}, which it calls final")]
    FalseFinal {
        /// The height.
        height: u64,
    },
    /// It reported events that a quorum denies.
    #[error("it reported events that a quorum denies")]
    FalseEvents,
    /// Its reads at a block are not those of a quorum.
    #[error("it contradicts the quorum on the contract's state at one block")]
    FalseDecisions,
    /// It sent a proof that does not verify.
    #[error("its proof of the contract's storage does not verify: {0}")]
    FalseProof(BadProof),
    /// It is on another chain.
    #[error("it is on chain {reported}, not on {wanted}: correct grants.endpoints or grants.chain_id")]
    OtherChain {
        /// The chain it reports.
        reported: u64,
        /// The configured chain.
        wanted: u64,
    },
}

impl EndpointFault {
    /// The answer was larger than allowed.
    pub fn too_large() -> Self {
        Self::NoAnswer("its answer is too large".to_owned())
    }

    /// Whether it counts as a failure of the endpoint. A failed call was counted when it failed; a block that only
    /// another endpoint knows is no fault.
    pub fn counts(&self) -> bool {
        match self {
            Self::NoAnswer(_)
            | Self::OtherChain { .. }
            | Self::FalseHeight { .. }
            | Self::FinalStuck { .. }
            | Self::FalseFinal { .. }
            | Self::FalseEvents
            | Self::FalseDecisions => false,
            Self::Refused(refusal) => !refusal.unknown_block() && !refusal.beyond_head(),
            Self::Partial | Self::Malformed(_) | Self::Behind(_) | Self::Stuck { .. } | Self::FalseProof(_) => true,
        }
    }

    /// Whether the endpoint reports that the requested range or result is too large.
    pub fn too_much(&self) -> bool {
        match self {
            Self::Refused(refusal) => refusal.too_much(),
            Self::NoAnswer(_)
            | Self::OtherChain { .. }
            | Self::FalseHeight { .. }
            | Self::Partial
            | Self::Malformed(_)
            | Self::Behind(_)
            | Self::Stuck { .. }
            | Self::FinalStuck { .. }
            | Self::FalseFinal { .. }
            | Self::FalseEvents
            | Self::FalseDecisions
            | Self::FalseProof(_) => false,
        }
    }

    /// Whether the calls cost more gas, bytes or time than the endpoint allows.
    pub(crate) fn too_expensive(&self) -> bool {
        match self {
            Self::Refused(refusal) => refusal.too_expensive(),
            Self::NoAnswer(_)
            | Self::OtherChain { .. }
            | Self::FalseHeight { .. }
            | Self::Partial
            | Self::Malformed(_)
            | Self::Behind(_)
            | Self::Stuck { .. }
            | Self::FinalStuck { .. }
            | Self::FalseFinal { .. }
            | Self::FalseEvents
            | Self::FalseDecisions
            | Self::FalseProof(_) => false,
        }
    }
}
