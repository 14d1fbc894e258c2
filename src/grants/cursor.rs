//! How far the contract's events were read, whether the known blocks are still part of the chain, and the block range
//! of one request for events.
use super::abi::Head;
use super::jsonrpc::BlockRef;
use super::learnt::LearntLimit;
use alloy_primitives::B256;
use serde::{Deserialize, Serialize};
use spoke_model::time::Boot;

/// Known blocks kept to find the fork after a reorganisation.
const ANCHORS: usize = 12;
/// Blocks read again in each poll: of several servers behind one URL some may be below the reported height, and a change
/// in the newest block is verified at the block before.
const OVERLAP: u64 = 8;
/// Blocks of the first scan.
const CHUNK_START: u64 = 2_000;
/// Maximum number of blocks of one scan.
const CHUNK_MAX: u64 = 10_000;
/// With more unread blocks than this, all candidates are verified again instead of reading the events.
const JUMP: u64 = 20_000;
/// The same, in requests for events.
const JUMP_REQUESTS: u64 = 64;
/// Range of the `BLOCKHASH` opcode in blocks.
const REMEMBERED: u64 = 256;

/// Whether the newest known block is still part of the chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Continuity {
    /// It is, or no answer contradicts it.
    #[default]
    Same,
    /// Another block has replaced it.
    Reorganised,
    /// The endpoint is behind it.
    Behind,
    /// It is too old for `BLOCKHASH`: the block at its height must be requested.
    TooOld,
}

/// How far the events were read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainCursor {
    /// Blocks known to be part of the chain, ascending.
    anchors: heapless::Vec<BlockRef, ANCHORS>,
    /// Every event up to this height was read.
    scanned: Option<u64>,
    /// Hash of the chain's first block.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    first: Option<B256>,
    /// The next height to read in this poll; `None`: nothing was read in it.
    #[serde(skip)]
    reading: Option<u64>,
    /// Block range of a request that the endpoints are known to accept.
    #[serde(skip)]
    chunk: Option<u64>,
    /// `ceiling` in this poll.
    #[serde(skip, default = "chunk_max")]
    limit: u64,
    /// Limit of `chunk`: every refusal is a wasted request.
    #[serde(skip, default = "no_ceiling")]
    ceiling: LearntLimit,
}

const fn chunk_max() -> u64 {
    CHUNK_MAX
}

fn no_ceiling() -> LearntLimit {
    LearntLimit::new(CHUNK_MAX)
}

impl Default for ChainCursor {
    fn default() -> Self {
        Self {
            anchors: heapless::Vec::new(),
            scanned: None,
            first: None,
            reading: None,
            chunk: None,
            limit: CHUNK_MAX,
            ceiling: no_ceiling(),
        }
    }
}

impl ChainCursor {
    /// Starts at `block`; the state up to it is known by verification.
    pub fn start(block: BlockRef) -> Self {
        let mut anchors = heapless::Vec::new();
        // Cannot overflow: the list is empty.
        let _ = anchors.push(block);
        Self { anchors, scanned: Some(block.number), ..Self::default() }
    }

    /// Starts before `first`, to read every event from there on.
    #[cfg(test)]
    fn from_height(first: u64) -> Self {
        Self { scanned: Some(first.saturating_sub(1)), ..Self::default() }
    }

    /// Every event up to this height was read; `None`: not started.
    pub const fn scanned(&self) -> Option<u64> {
        self.scanned
    }

    /// The newest block known to be part of the chain.
    pub fn newest(&self) -> Option<BlockRef> {
        self.anchors.last().copied()
    }

    /// Whether the newest known block is part of the chain of an endpoint's head.
    pub fn judge(&self, head: &Head) -> Continuity {
        let Some(known) = self.newest() else { return Continuity::Same };
        if head.number < known.number {
            return Continuity::Behind;
        }
        match head.asked {
            Some(hash) if hash == known.hash => Continuity::Same,
            Some(_) => Continuity::Reorganised,
            // `BLOCKHASH` does not return the hash of the current block; the next head does.
            None if head.number == known.number => Continuity::Same,
            None if head.number - known.number <= REMEMBERED => Continuity::Behind,
            None => Continuity::TooOld,
        }
    }

    /// Whether the block at the newest known height, requested by height, is the known one.
    pub fn judge_block(&self, reported: Option<BlockRef>) -> Continuity {
        match (self.newest(), reported) {
            (None, _) => Continuity::Same,
            (Some(_), None) => Continuity::Behind,
            (Some(known), Some(reported)) if known == reported => Continuity::Same,
            (Some(_), Some(_)) => Continuity::Reorganised,
        }
    }

    /// Drops the newest known block, which is not part of the chain. False: none is left.
    pub fn step_back(&mut self) -> bool {
        let gone = self.anchors.pop();
        if let Some(gone) = gone {
            let back = self.newest().map_or(gone.number.saturating_sub(1), |b| b.number);
            self.scanned = self.scanned.map(|s| s.min(back));
        }
        !self.anchors.is_empty()
    }

    /// The next range of heights to read up to `head`, at most a chunk. `None`: not started.
    pub fn next(&self, head: u64) -> Option<(u64, u64)> {
        let overlap = OVERLAP.min((self.chunk() / 2).max(2));
        let again = self.scanned?.saturating_add(1).saturating_sub(overlap);
        let from = self.reading.unwrap_or(again);
        let to = from.saturating_add(self.chunk().saturating_sub(1)).min(head);
        Some((from.min(to), to))
    }

    /// Whether reading the events up to `head` takes more requests than verifying every candidate again.
    pub fn costly_gap(&self, head: u64) -> bool {
        let gap = self.gap(head);
        gap > JUMP || gap / self.chunk() > JUMP_REQUESTS
    }

    /// Starts again at `block`, with the known limits of the endpoints.
    pub fn restart(&mut self, block: BlockRef) {
        *self = Self {
            first: self.first,
            chunk: self.chunk,
            limit: self.limit,
            ceiling: self.ceiling.clone(),
            ..Self::start(block)
        };
    }

    /// Number of unread blocks up to `head`.
    pub fn gap(&self, head: u64) -> u64 {
        self.scanned.map_or(u64::MAX, |s| head.saturating_sub(s))
    }

    /// Maximum number of blocks of the next scan.
    pub fn chunk(&self) -> u64 {
        self.chunk.unwrap_or(CHUNK_START)
    }

    /// Records that every event up to `to` was read; the height never decreases.
    pub fn read_to(&mut self, to: u64) {
        self.scanned = Some(self.scanned.map_or(to, |s| s.max(to)));
        self.reading = Some(to.saturating_add(1));
        self.chunk = Some(self.chunk().saturating_mul(2).min(self.limit));
    }

    /// A new poll begins: the newest blocks are read again, and a limit that is old is tried again.
    pub fn begin_poll(&mut self, now: Boot) {
        self.reading = None;
        self.limit = self.ceiling.get(now);
    }

    /// Hash of the chain's first block; `None`: not known.
    pub const fn first(&self) -> Option<B256> {
        self.first
    }

    /// Records the chain's first block.
    pub const fn set_first(&mut self, hash: B256) {
        self.first = Some(hash);
    }

    /// Halves the range after an endpoint refused it. False: it refused a single block.
    pub fn too_much(&mut self, now: Boot) -> bool {
        let before = self.chunk();
        let half = (before / 2).max(1);
        self.chunk = Some(half);
        self.ceiling.lower(half, now);
        self.limit = half;
        before > 1
    }

    /// Adds `block`, which is part of the chain, to the known blocks.
    pub fn anchor(&mut self, block: BlockRef) {
        if self.newest().is_some_and(|n| n.number >= block.number) {
            return;
        }
        if self.anchors.is_full() {
            // Keep the oldest and every second of the others, so that the distances grow with age.
            let mut i = 0;
            self.anchors.retain(|_| {
                i += 1;
                i == 1 || i % 2 == 0
            });
            // The oldest advances too.
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
        Head { number, parent: None, asked: asked.map(|b| b.hash), chain_id: 1 }
    }

    #[test]
    fn head_is_judged_by_the_known_blocks() {
        let f = ChainCursor::start(block(100, 1));
        assert_eq!(f.judge(&head(101, Some(block(100, 1)))), Continuity::Same);
        assert_eq!(f.judge(&head(101, Some(block(100, 2)))), Continuity::Reorganised);
        assert_eq!(f.judge(&head(99, None)), Continuity::Behind);
        assert_eq!(f.judge(&head(100, None)), Continuity::Same);
        assert_eq!(f.judge(&head(400, None)), Continuity::TooOld);
        assert_eq!(f.judge(&head(300, None)), Continuity::Behind, "within range of BLOCKHASH, but unknown");
        assert_eq!(f.judge_block(Some(block(100, 2))), Continuity::Reorganised);
    }

    #[test]
    fn reorganisation_steps_back_to_a_known_block() {
        let mut f = ChainCursor::start(block(100, 1));
        f.read_to(105);
        f.anchor(block(104, 1));
        assert!(f.step_back());
        assert_eq!((f.newest(), f.scanned()), (Some(block(100, 1)), Some(100)));
        assert!(!f.step_back());
        assert_eq!(f.scanned(), Some(99));
    }

    proptest! {
        /// With any range limit the scan reaches the head and misses no block, and the height never decreases.
        #[test]
        fn scan_reaches_the_head(
            start in 0u64..1000,
            (head, limit) in prop_oneof![(1000u64..3000, 1u64..40), (1000u64..60_000, 40u64..12_000)],
        ) {
            let mut f = ChainCursor::from_height(start);
            let mut seen = start.saturating_sub(1);
            for _ in 0..10_000 {
                if f.gap(head) == 0 { break; }
                let (from, to) = f.next(head).unwrap();
                if to - from + 1 > limit { prop_assert!(f.too_much(Boot::default())); continue; }
                prop_assert!(from <= seen + 1, "{from}..={to} after {seen}");
                seen = seen.max(to);
                f.read_to(to);
                prop_assert_eq!(f.scanned(), Some(seen));
            }
            prop_assert_eq!(seen, head);
        }

        #[test]
        fn anchors_ascend_and_are_bounded(steps in proptest::collection::vec(1u64..50, 1..300)) {
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
