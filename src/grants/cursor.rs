//! How far the contract's events were read, whether the known blocks still are part of the chain, and how many blocks of
//! events an endpoint gives at once.
use super::abi::Head;
use super::jsonrpc::BlockRef;
use serde::{Deserialize, Serialize};

/// Blocks kept to find back to the chain after a reorganisation.
const ANCHORS: usize = 12;
/// Blocks read again each time: behind one URL may be several machines, not all of them at the reported height.
const OVERLAP: u64 = 8;
/// Blocks of the first scan.
const CHUNK_START: u64 = 2_000;
/// Most blocks of one scan.
const CHUNK_MAX: u64 = 10_000;
/// Blocks a running block knows the hashes of.
const REMEMBERED: u64 = 256;

/// Whether the newest known block is still part of the chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Continuity {
    /// It is, or nothing contradicts it.
    #[default]
    Same,
    /// Another block has taken its place.
    Reorganised,
    /// The endpoint is behind it.
    Behind,
    /// It is too old to be compared by the head: the block at its height must be asked for.
    TooOld,
}

/// How far the events have been read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainCursor {
    /// Blocks known to be part of the chain, ascending.
    anchors: heapless::Vec<BlockRef, ANCHORS>,
    /// Every event up to here has been seen.
    scanned: Option<u64>,
    /// Blocks an endpoint gives at once, as far as learnt.
    #[serde(skip)]
    chunk: Option<u64>,
    /// What was refused last less a half: no more is asked for in this run, for every refusal is a request for nothing.
    #[serde(skip)]
    ceiling: Option<u64>,
}

impl ChainCursor {
    /// Starts at `block`: what happened up to it is known in another way.
    pub fn start(block: BlockRef) -> Self {
        let mut anchors = heapless::Vec::new();
        // An empty list has room.
        let _ = anchors.push(block);
        Self { anchors, scanned: Some(block.number), chunk: None, ceiling: None }
    }

    /// Starts before `first`, to read everything from there on.
    pub const fn from_height(first: u64) -> Self {
        Self { anchors: heapless::Vec::new(), scanned: Some(first.saturating_sub(1)), chunk: None, ceiling: None }
    }

    /// Every event up to this height has been seen; `None`: nowhere started.
    pub const fn scanned(&self) -> Option<u64> {
        self.scanned
    }

    /// The newest block known to be part of the chain.
    pub fn newest(&self) -> Option<BlockRef> {
        self.anchors.last().copied()
    }

    /// Whether an endpoint's head stands on what we know.
    pub fn judge(&self, head: &Head) -> Continuity {
        let Some(known) = self.newest() else { return Continuity::Same };
        if head.number < known.number {
            return Continuity::Behind;
        }
        match head.asked {
            Some(hash) if hash == known.hash => Continuity::Same,
            Some(_) => Continuity::Reorganised,
            // A block does not know its own hash; the next one will tell.
            None if head.number == known.number => Continuity::Same,
            None if head.number - known.number <= REMEMBERED => Continuity::Behind,
            None => Continuity::TooOld,
        }
    }

    /// Whether the block at the newest known height, asked for by height, is the known one.
    pub fn judge_block(&self, told: Option<BlockRef>) -> Continuity {
        match (self.newest(), told) {
            (None, _) => Continuity::Same,
            (Some(_), None) => Continuity::Behind,
            (Some(known), Some(told)) if known == told => Continuity::Same,
            (Some(_), Some(_)) => Continuity::Reorganised,
        }
    }

    /// The newest known block is not part of the chain: steps back to the one before. False: none is left.
    pub fn step_back(&mut self) -> bool {
        let gone = self.anchors.pop();
        if let Some(gone) = gone {
            let back = self.newest().map_or(gone.number.saturating_sub(1), |b| b.number);
            self.scanned = self.scanned.map(|s| s.min(back));
        }
        !self.anchors.is_empty()
    }

    /// The next heights to read, given the newest: at most a chunk. `None`: not started.
    pub fn next(&self, head: u64) -> Option<(u64, u64)> {
        let from = self.scanned?.saturating_add(1).saturating_sub(OVERLAP.min(self.chunk() / 2));
        let to = from.saturating_add(self.chunk().saturating_sub(1)).min(head);
        Some((from.min(to), to))
    }

    /// How many blocks lie between what was read and `head`.
    pub fn gap(&self, head: u64) -> u64 {
        self.scanned.map_or(u64::MAX, |s| head.saturating_sub(s))
    }

    /// Blocks of the next scan at most.
    pub fn chunk(&self) -> u64 {
        self.chunk.unwrap_or(CHUNK_START)
    }

    /// Everything up to `to` was read; never goes back.
    pub fn read_to(&mut self, to: u64) {
        self.scanned = Some(self.scanned.map_or(to, |s| s.max(to)));
        self.chunk = Some(self.chunk().saturating_mul(2).min(self.ceiling.unwrap_or(CHUNK_MAX)));
    }

    /// An endpoint would not give that many blocks. False: it does not even give one.
    pub fn too_much(&mut self) -> bool {
        let before = self.chunk();
        self.chunk = Some((before / 2).max(1));
        self.ceiling = self.chunk;
        before > 1
    }

    /// `block` is part of the chain.
    pub fn anchor(&mut self, block: BlockRef) {
        if self.newest().is_some_and(|n| n.number >= block.number) {
            return;
        }
        if self.anchors.is_full() {
            // The oldest stays as the last resort; of the others every second goes, so that they reach back further and further.
            let mut i = 0;
            self.anchors.retain(|_| {
                i += 1;
                i == 1 || i % 2 == 0
            });
            // And the last resort moves up.
            if self.anchors.len() > 4 {
                self.anchors.remove(0);
            }
        }
        let _ = self.anchors.push(block);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloy_primitives::B256;
    use proptest::prelude::*;

    fn block(number: u64, fork: u8) -> BlockRef {
        BlockRef {
            number,
            hash: B256::from(
                [[fork; 24].as_slice(), &number.to_be_bytes()].concat().try_into().map(|b: [u8; 32]| b).unwrap(),
            ),
        }
    }

    fn head(number: u64, asked: Option<BlockRef>) -> Head {
        Head { number, parent: None, asked: asked.map(|b| b.hash) }
    }

    #[test]
    fn a_head_is_judged_by_what_is_known() {
        let f = ChainCursor::start(block(100, 1));
        assert_eq!(f.judge(&head(101, Some(block(100, 1)))), Continuity::Same);
        assert_eq!(f.judge(&head(101, Some(block(100, 2)))), Continuity::Reorganised);
        assert_eq!(f.judge(&head(99, None)), Continuity::Behind);
        assert_eq!(f.judge(&head(100, None)), Continuity::Same);
        assert_eq!(f.judge(&head(400, None)), Continuity::TooOld);
        assert_eq!(f.judge(&head(300, None)), Continuity::Behind, "an endpoint that could know and does not");
        assert_eq!(f.judge_block(Some(block(100, 2))), Continuity::Reorganised);
    }

    #[test]
    fn a_reorganisation_is_walked_back() {
        let mut f = ChainCursor::start(block(100, 1));
        f.read_to(105);
        f.anchor(block(104, 1));
        assert!(f.step_back());
        assert_eq!((f.newest(), f.scanned()), (Some(block(100, 1)), Some(100)));
        assert!(!f.step_back());
        assert_eq!(f.scanned(), Some(99));
    }

    proptest! {
        /// Whatever an endpoint refuses, the scan reaches the head, misses no block, and the height never goes back.
        #[test]
        fn a_scan_gets_there(
            start in 0u64..1000,
            (head, limit) in prop_oneof![(1000u64..3000, 1u64..40), (1000u64..60_000, 40u64..12_000)],
        ) {
            let mut f = ChainCursor::from_height(start);
            let mut seen = start.saturating_sub(1);
            for _ in 0..10_000 {
                if f.gap(head) == 0 { break; }
                let (from, to) = f.next(head).unwrap();
                if to - from + 1 > limit { prop_assert!(f.too_much()); continue; }
                prop_assert!(from <= seen + 1 && to >= seen, "{from}..={to} after {seen}");
                seen = to;
                f.read_to(to);
                prop_assert_eq!(f.scanned(), Some(seen));
            }
            prop_assert_eq!(seen, head);
        }

        #[test]
        fn anchors_ascend_and_reach_back(steps in proptest::collection::vec(1u64..50, 1..300)) {
            let mut f = ChainCursor::start(block(1, 1));
            let mut n = 1;
            for s in steps {
                n += s;
                f.anchor(block(n, 1));
                prop_assert_eq!(f.newest(), Some(block(n, 1)));
                prop_assert!(f.anchors.windows(2).all(|w| w[0].number < w[1].number));
                prop_assert!(f.anchors.len() <= ANCHORS);
            }
        }
    }
}
