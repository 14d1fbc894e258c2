//! The stored documents: decisions on disk, the cursor where a reboot clears it.
//!
//! Every decision is stored when it is made, with the height it holds for, so that no older block can undo it. The cursor
//! changes with every block and would wear the flash: it outlives the process, not a reboot.

use super::ladder::Reserve;
use crate::admission::StoredDecision;
use crate::cursor::ChainCursor;
use alloy_primitives::Address;
use serde::{Deserialize, Serialize};

/// The contract and chain a document is about.
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
    /// What it is about.
    #[serde(flatten)]
    pub origin: Origin,
    /// How far the events had been read.
    pub follow: ChainCursor,
    /// How much of the grace ladder may be used up.
    pub reserve: Option<Reserve>,
    /// The decisions.
    pub grants: Vec<StoredDecision>,
}

/// The document that lasts until the next reboot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoredCursor {
    /// What it is about.
    #[serde(flatten)]
    pub origin: Origin,
    /// How far the events have been read.
    pub follow: ChainCursor,
}

/// The further of two: the accepted height does not go back.
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
    fn the_further_height_counts() {
        let at = |number| ChainCursor::start(BlockRef { number, ..BlockRef::default() });
        assert_eq!(further(at(5), Some(at(9))), at(9));
        assert_eq!(further(at(9), Some(at(5))), at(9), "the disk was written last");
        assert_eq!(further(at(9), None), at(9));
        assert_eq!(further(ChainCursor::default(), Some(at(5))), at(5));
    }
}
