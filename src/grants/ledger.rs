//! The stored documents: the decisions on disk, the cursor in a directory that a reboot clears.
//!
//! Every decision is stored at once, with the height it holds for, so that an older block cannot revert it. The cursor
//! changes with every block and would wear out the flash: it survives a restart of the process, not a reboot.

use super::ladder::Reserve;
use crate::admission::StoredDecision;
use crate::cursor::ChainCursor;
use alloy_primitives::Address;
use serde::{Deserialize, Serialize};

/// The contract and chain of a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The contract.
    pub contract: Address,
    /// Its chain.
    pub chain_id: u64,
}

/// The document on disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoredGrants {
    /// Contract and chain.
    #[serde(flatten)]
    pub origin: Origin,
    /// How far the events were read.
    pub follow: ChainCursor,
    /// How much of the grace ladder may have been used.
    pub reserve: Option<Reserve>,
    /// The decisions.
    pub grants: Vec<StoredDecision>,
}

/// The document that is cleared by a reboot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoredCursor {
    /// Contract and chain.
    #[serde(flatten)]
    pub origin: Origin,
    /// How far the events were read.
    pub follow: ChainCursor,
}

/// What a restart finds after a failed write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OldContent {
    /// The old content, which admits no peer that was revoked since.
    Stays,
    /// Nothing: it admitted a revoked peer and was removed.
    Removed,
    /// The old content, which admits a revoked peer.
    Obsolete,
}

/// A document could not be written; the driver knows the cause, the machine only reports it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{error}")]
pub struct StoreError {
    /// The cause.
    pub error: String,
    /// What is on the disk instead.
    pub old: OldContent,
}

/// The cursor with the greater height: the accepted height never decreases.
pub fn further(disk: ChainCursor, memory: Option<ChainCursor>) -> ChainCursor {
    match memory {
        Some(m) if m.scanned() > disk.scanned() => m,
        Some(_) | None => disk,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jsonrpc::BlockRef;

    #[test]
    fn cursor_with_the_greater_height_wins() {
        let at = |number| ChainCursor::start(BlockRef { number, ..BlockRef::default() });
        assert_eq!(further(at(5), Some(at(9))), at(9));
        assert_eq!(further(at(9), Some(at(5))), at(9), "the disk was written last");
        assert_eq!(further(at(9), None), at(9));
        assert_eq!(further(ChainCursor::default(), Some(at(5))), at(5));
    }
}
