//! Probes of the JSON-RPC endpoints: chain, height, latency, and every method that grants need.
use alloy_primitives::U256;
use futures_util::future::join_all;
use spoke_api::socket::{SOCKET, SocketRequest};
use spoke_config::grants::{Finality, Grants};
use spoke_config::layout::Verification;
use spoke_grants::abi::{ContractProbe, Head, decode_head, decode_pin, head_call, pin_call};
use spoke_grants::fault::EndpointFault;
use spoke_grants::jsonrpc::{Answer, At, BlockRef, Call};
use spoke_grants::proof::ProofRequest;
use spoke_grants::question::Question;
use spoke_grants::report::EndpointRow;
use spoke_sys::keys::KeyError;
use spoke_sys::rpc::{Http, Rpc as _, RpcError};
use spoke_sys::socket::call;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// EVM code that returns the time of the block it runs at: `TIMESTAMP PUSH 0 MSTORE PUSH 32 PUSH 0 RETURN`.
const TIME_CALL: [u8; 9] = [0x42, 0x60, 0x00, 0x52, 0x60, 0x20, 0x60, 0x00, 0xf3];
/// Blocks of events that are requested at once.
pub const LOG_RANGE: u64 = 2000;

/// How far below the lowest head the endpoints' blocks are compared: newer ones may be replaced.
const BELOW_HEAD: u64 = 5;

/// An endpoint and its answers.
#[derive(Debug)]
pub struct EndpointProbe {
    /// Its name, without secrets.
    pub name: String,
    /// Its answers.
    pub answers: Result<EndpointAnswers, RpcError>,
}

/// Answers of one endpoint; `None` and `false`: the method is missing or its answer malformed.
#[derive(Clone, Debug, Default)]
pub struct EndpointAnswers {
    /// Duration of the first batch.
    pub took: Duration,
    /// `eth_chainId`.
    pub chain_id: Option<u64>,
    /// `web3_clientVersion`.
    pub client: Option<String>,
    /// Newest block, by code sent along with `eth_call`.
    pub latest: Option<Head>,
    /// Time of the newest block, in Unix seconds.
    pub latest_time: Option<u64>,
    /// The block of the configured finality tag.
    pub last_final: Option<Head>,
    /// Returns [`LOG_RANGE`] blocks of events.
    pub logs: bool,
    /// Returns blocks by number.
    pub block_by_number: bool,
    /// Reads state by block hash.
    pub state_by_hash: bool,
    /// With `verify = "proof"`: whether a proof verifies at a block of that age; otherwise why not.
    pub proof: Option<Result<(), EndpointFault>>,
    /// What is at the contract's address.
    pub contract: Option<ContractProbe>,
    /// The block at a height that every endpoint has.
    pub common: Option<BlockRef>,
}

/// What an endpoint reported to the running supervisor within the last hour, and a quorum refutes.
#[derive(Clone, Debug)]
pub struct RefutedClaim {
    /// The endpoint's name.
    pub endpoint: String,
    /// The claim.
    pub claim: String,
}

/// The refuted claims that the supervisor knows; none if it does not run.
pub fn refuted(runtime_dir: &Path) -> Vec<RefutedClaim> {
    // The report without its rows.
    #[derive(serde::Deserialize)]
    struct Claims {
        endpoints: Vec<EndpointRow>,
    }
    let claims = call::<Claims>(&runtime_dir.join(SOCKET), &SocketRequest::Grants).map(|c| c.endpoints);
    let claim = |e: EndpointRow| Some(RefutedClaim { endpoint: e.name, claim: e.refuted? });
    claims.unwrap_or_default().into_iter().filter_map(claim).collect()
}

/// Queries all endpoints concurrently, so that their heights can be compared.
pub async fn endpoints(config: &Grants) -> Result<Vec<EndpointProbe>, KeyError> {
    let rpc = Http::new(config)?;
    let rpc = &rpc;
    let probes = (0..rpc.endpoints()).map(|i| async move {
        EndpointProbe { name: rpc.name(i).to_owned(), answers: endpoint(rpc, i, config).await }
    });
    let mut probes = join_all(probes).await;
    let heads = probes.iter().filter_map(|p| p.answers.as_ref().ok()?.latest.as_ref().map(|h| h.number));
    let Some(common) = heads.min().map(|lowest| lowest.saturating_sub(BELOW_HEAD)) else { return Ok(probes) };
    let blocks = probes.iter().enumerate().map(|(i, probe)| async move {
        let usable = probe.answers.as_ref().is_ok_and(|a| a.chain_id == Some(config.chain_id));
        let reply = if usable { rpc.ask(i, vec![Call::Header(At::Number(common))], 1 << 20).await.ok() } else { None };
        match reply.and_then(|r| r.answers.into_iter().next().flatten()) {
            Some(Answer::Block(block)) => Some(block),
            Some(_) | None => None,
        }
    });
    let blocks = join_all(blocks).await;
    for (probe, block) in probes.iter_mut().zip(blocks) {
        if let Ok(answers) = &mut probe.answers {
            answers.common = block;
        }
    }
    Ok(probes)
}

async fn endpoint(rpc: &Http, i: usize, config: &Grants) -> Result<EndpointAnswers, RpcError> {
    let run = |code: &[u8], at| Call::Run { code: code.to_vec(), at };
    let mut first =
        vec![Call::ChainId, Call::ClientVersion, run(&head_call(0), At::Latest), run(&TIME_CALL, At::Latest)];
    let tag = match config.finality {
        Finality::Latest => None,
        Finality::Safe => Some(At::Safe),
        Finality::Finalized => Some(At::Finalized),
    };
    first.push(run(&pin_call(config.contract), At::Latest));
    first.extend(tag.map(|at| run(&head_call(0), at)));
    let reply = rpc.ask(i, first, 1 << 16).await?;
    let mut answers = reply.answers.into_iter();
    let mut next = || answers.next().flatten();
    let mut out = EndpointAnswers {
        took: reply.took,
        chain_id: number(next()),
        client: text(next()),
        latest: head(next()),
        latest_time: seconds(next()),
        contract: contract(next()),
        last_final: head(next()),
        ..EndpointAnswers::default()
    };
    let Some(latest) = &out.latest else { return Ok(out) };
    let from = latest.number.saturating_sub(LOG_RANGE);
    let mut second = vec![
        Call::Logs { contract: config.contract, from, to: Some(latest.number) },
        Call::Header(At::Number(latest.number.saturating_sub(1))),
    ];
    second.extend(latest.parent.map(|hash| run(&head_call(0), At::Hash(hash))));
    out.proof = proof(rpc, i, config, out.last_final.as_ref().unwrap_or(latest)).await;
    let answers = rpc.ask(i, second, 10 << 20).await.map(|r| r.answers).unwrap_or_default();
    let parent = latest.parent;
    out.logs = matches!(answers.first(), Some(Some(Answer::Events(_))));
    out.block_by_number = matches!(answers.get(1), Some(Some(Answer::Block(b))) if parent.is_none_or(|p| p == b.hash));
    out.state_by_hash = parent.is_none() || matches!(answers.get(2), Some(Some(Answer::Bytes(_))));
    Ok(out)
}

/// Requests the contract's account with its proof at the block below `head`; `None`: not needed, or the chain has none.
async fn proof(rpc: &Http, i: usize, config: &Grants, head: &Head) -> Option<Result<(), EndpointFault>> {
    let block = BlockRef { number: head.number.checked_sub(1)?, hash: head.parent? };
    if config.verify == Verification::Calls {
        return None;
    }
    let request = ProofRequest { pin: 0, block, storage_root: None, slots: Arc::from([config.layout.tokens.0.into()]) };
    let question = Question::Proofs(vec![request]);
    let reply = rpc.ask(i, question.calls(config.contract), question.max_bytes()).await;
    let answers = reply.map(|r| r.answers).map_err(|e| EndpointFault::NoAnswer(e.to_string()));
    Some(answers.and_then(|a| question.read(a, config.contract, config.chain_id)).map(drop))
}

fn number(answer: Option<Answer>) -> Option<u64> {
    match answer {
        Some(Answer::Number(n)) => Some(n),
        Some(_) | None => None,
    }
}

fn text(answer: Option<Answer>) -> Option<String> {
    match answer {
        Some(Answer::Name(name)) => Some(name),
        Some(_) | None => None,
    }
}

fn contract(answer: Option<Answer>) -> Option<ContractProbe> {
    match answer {
        Some(Answer::Bytes(bytes)) => decode_pin(&bytes).ok().map(|a| a.contract),
        Some(_) | None => None,
    }
}

fn seconds(answer: Option<Answer>) -> Option<u64> {
    match answer {
        Some(Answer::Bytes(bytes)) => U256::try_from_be_slice(&bytes)?.try_into().ok(),
        Some(_) | None => None,
    }
}

fn head(answer: Option<Answer>) -> Option<Head> {
    match answer {
        Some(Answer::Bytes(bytes)) => decode_head(&bytes).ok(),
        Some(_) | None => None,
    }
}
