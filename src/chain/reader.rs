//! Runs single queries, for `spoke` commands and for enrolments. Waits for: replies, the deadline.
use crate::endpoint::{endpoint_names, log_notice, send};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use spoke_config::grants::Grants;
use spoke_grants::exchange::{Conversation, ExchangeAction, NoQuorum, RpcRequest, Traffic};
use spoke_grants::jsonrpc::{At, BlockRef};
use spoke_grants::policy::Pair;
use spoke_grants::procedure::{FindBlock, Procedure};
use spoke_grants::query::{Query, QueryEvent};
use spoke_grants::verify::{DecidePair, PairDecision, Verified, Verify};
use spoke_sys::clock::Clock;
use spoke_sys::random::seed;
use spoke_sys::rpc::Rpc;
use std::sync::Arc;

/// Queries the chain through its endpoints, one query at a time.
#[derive(Debug)]
pub struct ChainReader<R, C> {
    rpc: R,
    clock: C,
    conversation: Conversation,
}

impl<R: Rpc, C: Clock> ChainReader<R, C> {
    /// A reader of the endpoints behind `rpc`.
    pub fn new(rpc: R, clock: C, config: Arc<Grants>) -> Self {
        let conversation = Conversation::new(config, endpoint_names(&rpc), seed());
        Self { rpc, clock, conversation }
    }

    /// Counters since it was created.
    pub const fn traffic(&self) -> Traffic {
        self.conversation.traffic
    }

    /// A block by height, hash or tag; `None`: the chain has no such block.
    pub async fn find_block(&mut self, at: At) -> Result<Option<BlockRef>, NoQuorum> {
        self.run(FindBlock(at)).await
    }

    /// The decisions about `pairs` at one block, in their order.
    pub async fn verify(&mut self, pin: BlockRef, pairs: &[Pair]) -> Result<Verified, NoQuorum> {
        self.run(Verify::new(vec![pin], Vec::new(), pairs.into())).await
    }

    /// The decisions about one pair at the newest and the last final block.
    pub async fn decide(&mut self, pair: &Pair) -> Result<PairDecision, NoQuorum> {
        self.run(DecidePair::new(pair.clone())).await
    }

    async fn run<P: Procedure>(&mut self, procedure: P) -> Result<P::Output, NoQuorum> {
        let needed = self.conversation.config().quorum;
        let call = |rpc: R, request: RpcRequest| async move {
            let id = request.id;
            QueryEvent::Replied { id, reply: send(&rpc, request).await }
        };
        let mut calls = FuturesUnordered::new();
        let (mut query, mut actions) = Query::begin(self.clock.now(), &mut self.conversation, procedure);
        loop {
            for action in actions {
                match action {
                    ExchangeAction::Send(request) => calls.push(call(self.rpc.clone(), request)),
                    ExchangeAction::Report(notice) => log_notice(&notice),
                }
            }
            let Some(deadline) = query.deadline().filter(|_| !query.done()) else { break };
            let wait = deadline.since(self.clock.now());
            let event = tokio::select! {
                Some(event) = calls.next() => event,
                () = self.clock.sleep(wait) => QueryEvent::Tick,
            };
            actions = query.handle(self.clock.now(), event);
        }
        query.into_result().unwrap_or(Err(NoQuorum { agreed: 0, needed, faults: Vec::new() }))
    }
}
