//! What `spoke doctor` looks at on each JSON-RPC endpoint: chain, height, latency, and every method that grants need.
use super::probe::{Finding, Level, finding};
use super::rpc::{Http, Rpc as _};
use crate::config::grants::Grants;
use crate::grants::abi::{Head, decode_head, head_call};
use crate::grants::jsonrpc::{Answer, Ask, At};

/// Blocks an endpoint may be behind the best of the others.
const LAG: u64 = 5;

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
    for i in 0..rpc.endpoints() {
        let (found, height) = endpoint(&rpc, i, config).await;
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
    let run = |at| Ask::Run { code: head_call(0).to_vec(), at };
    let first = [Ask::ChainId, Ask::ClientVersion, run(At::Latest), run(At::Safe)];
    let reply = match rpc.ask(i, first.to_vec(), 1 << 16).await {
        Ok(reply) => reply,
        Err(e) => {
            return (
                vec![finding(
                    name(rpc, i),
                    Level::Fail,
                    e.to_string(),
                    "check the URL, the key in it, and the way there",
                )],
                None,
            );
        }
    };
    let took = reply.took.as_millis();
    let mut answers = reply.answers.into_iter();
    let mut next = || answers.next().flatten();
    let (chain, client, latest, safe) = (next(), next(), head(next()), head(next()));
    let mut out = Vec::new();
    match chain {
        Some(Answer::Number(id)) if id == config.chain_id => {}
        Some(Answer::Number(id)) => {
            let detail = format!("is on chain {id}, not on {}", config.chain_id);
            return (
                vec![finding(name(rpc, i), Level::Fail, detail, "correct grants.endpoints or grants.chain_id")],
                None,
            );
        }
        Some(_) | None => {
            return (vec![finding(name(rpc, i), Level::Fail, "does not tell its chain", "use another endpoint")], None);
        }
    }
    let Some(latest) = latest else {
        let detail = "does not run code that is sent along with eth_call, which every look at the chain does";
        return (vec![finding(name(rpc, i), Level::Fail, detail, "use an endpoint of a full node")], None);
    };
    if safe.is_none() {
        out.push(finding(
            name(rpc, i),
            Level::Warn,
            "does not know the tag \"safe\"",
            "use another endpoint, or set grants.finality = \"latest\"",
        ));
    }
    // What depends on the height: state by block hash, and events.
    let from = latest.number.saturating_sub(2000);
    let mut second = vec![Ask::Logs { contract: config.contract, from, to: Some(latest.number) }];
    second.extend(latest.parent.map(|hash| run(At::Hash(hash))));
    let answers = rpc.ask(i, second, 10 << 20).await.map(|r| r.answers).unwrap_or_default();
    if !matches!(answers.first(), Some(Some(Answer::Changes(_)))) {
        out.push(finding(
            name(rpc, i),
            Level::Warn,
            "does not give 2,000 blocks of events at once",
            "nothing: smaller chunks are asked for by themselves",
        ));
    }
    if latest.parent.is_some() && !matches!(answers.get(1), Some(Some(Answer::Bytes(_)))) {
        out.push(finding(
            name(rpc, i),
            Level::Fail,
            "does not read state by block hash (EIP-1898)",
            "use another endpoint",
        ));
        return (out, Some(latest.number));
    }
    let client = match client {
        Some(Answer::Name(name)) => format!(", {name}"),
        Some(_) | None => String::new(),
    };
    let lag = safe.map_or(String::new(), |s| format!(", safe {} behind", latest.number.saturating_sub(s.number)));
    let detail = format!("chain {}, block {}{lag}, {took} ms{client}", config.chain_id, latest.number);
    out.insert(0, finding(name(rpc, i), Level::Ok, detail, ""));
    (out, Some(latest.number))
}

fn head(answer: Option<Answer>) -> Option<Head> {
    match answer {
        Some(Answer::Bytes(bytes)) => decode_head(&bytes).ok(),
        Some(_) | None => None,
    }
}
