//! What `spoke doctor` looks at on each JSON-RPC endpoint: chain, height, latency, and every method that grants need.
use super::probe::{Finding, Level, finding};
use alloy_primitives::U256;
use futures_util::future::join_all;
use spoke_config::grants::{Finality, Grants};
use spoke_grants::abi::{Head, decode_head, head_call};
use spoke_grants::jsonrpc::{Answer, At, Call};
use spoke_sys::clock::{Clock as _, SystemClock};
use spoke_sys::rpc::{Http, Rpc as _};

/// Blocks an endpoint may be behind the best of the others.
const LAG: u64 = 5;
/// Code that returns the time of the block it runs at.
const TIME_CALL: [u8; 9] = [0x42, 0x60, 0x00, 0x52, 0x60, 0x20, 0x60, 0x00, 0xf3];

/// Looks at every endpoint; needs a runtime.
pub async fn endpoints(config: &Grants) -> Vec<Finding> {
    let rpc = match Http::new(&config.endpoints, config.timeout) {
        Ok(rpc) => rpc,
        Err(e) => {
            return vec![finding(
                "grants.endpoints",
                Level::Fail,
                e.to_string(),
                "provide it, or write the URL into grants.endpoints",
            )];
        }
    };
    let mut out = Vec::new();
    let mut heights = Vec::new();
    // All at once, or whoever is asked later would seem ahead.
    let found = join_all((0..rpc.endpoints()).map(|i| endpoint(&rpc, i, config))).await;
    for (i, (found, height)) in found.into_iter().enumerate() {
        out.extend(found);
        heights.push((i, height));
    }
    let best = heights.iter().filter_map(|(_, h)| *h).max().unwrap_or(0);
    for (i, height) in heights {
        if let Some(h) = height.filter(|h| best - h > LAG) {
            out.push(finding(
                name(&rpc, i),
                Level::Warn,
                format!("{} blocks behind the others", best - h),
                "use another endpoint, or tell its provider",
            ));
        }
    }
    let good = out.iter().filter(|f| f.level == Level::Ok).count();
    if good < config.quorum {
        let detail = format!("{good} of the {} endpoints it takes are usable", config.quorum);
        out.push(finding(
            "grants quorum",
            Level::Fail,
            detail,
            "nobody new is admitted and nobody is revoked until more of them answer",
        ));
    }
    out
}

fn name(rpc: &Http, i: usize) -> String {
    rpc.name(i).to_owned()
}

async fn endpoint(rpc: &Http, i: usize, config: &Grants) -> (Vec<Finding>, Option<u64>) {
    let run = |code: &[u8], at| Call::Run { code: code.to_vec(), at };
    let says = |level, detail: String, remedy: &'static str| finding(name(rpc, i), level, detail, remedy);
    let fail = |detail: &str, remedy| (vec![says(Level::Fail, detail.to_owned(), remedy)], None);
    let latest = run(&head_call(0), At::Latest);
    let mut first = vec![Call::ChainId, Call::ClientVersion, latest, run(&TIME_CALL, At::Latest)];
    let (tag, final_at) = match config.finality {
        Finality::Latest => ("", None),
        Finality::Safe => ("safe", Some(At::Safe)),
        Finality::Finalized => ("finalized", Some(At::Finalized)),
    };
    first.extend(final_at.map(|at| run(&head_call(0), at)));
    let reply = match rpc.ask(i, first, 1 << 16).await {
        Ok(reply) => reply,
        Err(e) => return fail(&e.to_string(), "check the URL, the key in it, and the way there"),
    };
    let took = reply.took.as_millis();
    let mut answers = reply.answers.into_iter();
    let mut next = || answers.next().flatten();
    let (chain, client, latest, time, last_final) = (next(), next(), head(next()), seconds(next()), head(next()));
    match chain {
        Some(Answer::Number(id)) if id == config.chain_id => {}
        Some(Answer::Number(id)) => {
            let detail = format!("is on chain {id}, not on {}", config.chain_id);
            return fail(&detail, "correct grants.endpoints or grants.chain_id");
        }
        Some(_) | None => return fail("does not tell its chain (eth_chainId)", "use another endpoint"),
    }
    let Some(latest) = latest else {
        let detail = "does not run code that is sent along with eth_call, which every look at the chain does";
        return fail(detail, "use an endpoint of a full node");
    };
    let mut out = Vec::new();
    if final_at.is_some() && last_final.is_none() {
        let detail = format!("does not know the tag \"{tag}\": nobody new would be admitted");
        out.push(says(Level::Warn, detail, "use another endpoint, or another grants.finality"));
    }
    // What depends on the height: state by block hash, events, and blocks by number.
    let from = latest.number.saturating_sub(2000);
    let mut second = vec![
        Call::Logs { contract: config.contract, from, to: Some(latest.number) },
        Call::Header(At::Number(latest.number.saturating_sub(1))),
    ];
    second.extend(latest.parent.map(|hash| run(&head_call(0), At::Hash(hash))));
    let answers = rpc.ask(i, second, 10 << 20).await.map(|r| r.answers).unwrap_or_default();
    if !matches!(answers.first(), Some(Some(Answer::Events(_)))) {
        let detail = "does not give 2,000 blocks of events at once (eth_getLogs)";
        out.push(says(Level::Warn, detail.to_owned(), "nothing: smaller chunks are asked for by themselves"));
    }
    if !matches!(answers.get(1), Some(Some(Answer::Block(b))) if latest.parent.is_none_or(|p| p == b.hash)) {
        let detail = "does not give blocks by number (eth_getBlockByNumber): a reorganisation could not be followed";
        out.push(says(Level::Fail, detail.to_owned(), "use another endpoint"));
        return (out, Some(latest.number));
    }
    if latest.parent.is_some() && !matches!(answers.get(2), Some(Some(Answer::Bytes(_)))) {
        let detail = "does not read state by block hash (eth_call, EIP-1898)";
        out.push(says(Level::Fail, detail.to_owned(), "use another endpoint"));
        return (out, Some(latest.number));
    }
    let age = time.map(|t| SystemClock.wall().secs().saturating_sub(t));
    if !config.stall.is_zero() && age.is_some_and(|a| a > config.stall.as_secs()) {
        let detail = "seems to be stuck: its newest block is older than grants.stall".to_owned();
        out.push(says(Level::Warn, detail, "use another endpoint, unless this board's clock is wrong"));
    }
    let age = age.map_or(String::new(), |a| format!(", {a} s old"));
    let client = match client {
        Some(Answer::Name(name)) => format!(", {name}"),
        Some(_) | None => String::new(),
    };
    let lag =
        last_final.map_or(String::new(), |f| format!(", {tag} {} behind", latest.number.saturating_sub(f.number)));
    let detail = format!("chain {}, block {}{age}{lag}, {took} ms{client}", config.chain_id, latest.number);
    out.insert(0, says(Level::Ok, detail, ""));
    (out, Some(latest.number))
}

/// The time of the block, in unix seconds.
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
