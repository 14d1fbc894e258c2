//! Evaluates the JSON-RPC endpoints of `[grants]`.
use super::finding::{Finding, Level};
use super::probe::chain::{EndpointAnswers, EndpointProbe, RefutedClaim};
use spoke_config::grants::{Finality, Grants};
use spoke_config::layout::Verification;
use spoke_grants::abi::Head;
use spoke_grants::jsonrpc::BlockRef;
use spoke_model::error_chain::ErrorChain;
use spoke_model::time::Wall;
use spoke_sys::keys::KeyError;

/// Most blocks that an endpoint may be behind the best one.
const MAX_LAG: u64 = 5;

/// The remedy against an endpoint that lies.
const UNTRUE: &str = "remove it from grants.endpoints, or report it to its provider";

/// The endpoints whose claims a quorum refuted while the supervisor ran.
pub fn refuted(claims: &[RefutedClaim]) -> Vec<Finding> {
    let finding = |c: &RefutedClaim| {
        Finding::warn(&c.endpoint, format!("contradicted the quorum within the last hour: {}", c.claim), UNTRUE)
    };
    claims.iter().map(finding).collect()
}

/// Evaluates every endpoint, their heights against each other, and the quorum. `now` is compared with the time of the
/// newest block.
pub fn endpoints(probed: Result<&[EndpointProbe], &KeyError>, config: &Grants, now: Wall) -> Vec<Finding> {
    let probed = match probed {
        Ok(probed) => probed,
        Err(e) => {
            let remedy = "provide it, or write the URL into grants.endpoints";
            return vec![Finding::fail("grants.endpoints", ErrorChain(e).to_string(), remedy)];
        }
    };
    let mut out = Vec::new();
    let mut heights = Vec::new();
    let blocks: Vec<BlockRef> = probed.iter().filter_map(|p| p.answers.as_ref().ok()?.common).collect();
    let votes = |block: &BlockRef| blocks.iter().filter(|b| *b == block).count();
    let agreed = blocks.iter().find(|b| votes(b) >= config.quorum && 2 * votes(b) > blocks.len());
    for probe in probed {
        let (findings, height) = match &probe.answers {
            Ok(EndpointAnswers { common: Some(block), .. }) if agreed.is_some_and(|a| a != block) => {
                let detail = format!("contradicts the others: block {} is {} there", block.number, block.hash);
                (vec![Finding::fail(&probe.name, detail, UNTRUE)], None)
            }
            Ok(answers) => endpoint(&probe.name, answers, config, now),
            Err(e) => {
                let remedy = "check the URL, the key in it, and the route to it";
                (vec![Finding::fail(&probe.name, e.to_string(), remedy)], None)
            }
        };
        out.extend(findings);
        heights.extend(height.map(|h| (&probe.name, h)));
    }
    let best = heights.iter().map(|(_, h)| *h).max().unwrap_or(0);
    for (name, height) in heights.into_iter().filter(|(_, h)| best - h > MAX_LAG) {
        let remedy = "use another endpoint, or report it to its provider";
        out.push(Finding::warn(name, format!("{} blocks behind the others", best - height), remedy));
    }
    let proves = |p: &EndpointProbe| p.answers.as_ref().is_ok_and(|a| matches!(a.proof, Some(Ok(())) | None));
    if config.verify == Verification::Proof && !probed.iter().any(proves) {
        out.push(Finding::fail(
            "grants.verify",
            "no endpoint proves the contract's storage",
            "name one that has eth_getProof, or set verify = \"calls\": until then no peer is admitted or revoked",
        ));
    }
    let usable = out.iter().filter(|f| f.level == Level::Ok).count();
    if usable < config.quorum {
        out.push(Finding::fail(
            "grants quorum",
            format!("{usable} of the {} endpoints of the quorum are usable", config.quorum),
            "no new peer is admitted and none is revoked until more endpoints answer",
        ));
    }
    out
}

/// The findings of one endpoint, and its height if it is on the right chain.
fn endpoint(name: &str, a: &EndpointAnswers, config: &Grants, now: Wall) -> (Vec<Finding>, Option<u64>) {
    let fail = |detail: String, remedy| (vec![Finding::fail(name, detail, remedy)], None);
    let another = "use another endpoint";
    match a.chain_id {
        Some(id) if id == config.chain_id => {}
        Some(id) => {
            let detail = format!("is on chain {id}, not on {}", config.chain_id);
            return fail(detail, "correct grants.endpoints or grants.chain_id");
        }
        None => return fail("does not report its chain (eth_chainId)".to_owned(), another),
    }
    let Some(latest) = &a.latest else {
        let detail = "does not run code sent along with eth_call, which every poll of the chain needs";
        return fail(detail.to_owned(), "use an endpoint of a full node");
    };
    let mut out = Vec::new();
    match a.contract {
        Some(contract) if !contract.exists => {
            let detail = format!("has no contract at {} on chain {}", config.contract, config.chain_id);
            out.push(Finding::fail(
                name,
                detail,
                "correct grants.contract or grants.chain_id: until then no decision changes",
            ));
            return (out, Some(latest.number));
        }
        Some(contract) if !contract.erc721 => {
            let detail = format!("reports that {} is no ERC-721 contract (ERC-165)", config.contract);
            out.push(Finding::warn(name, detail, "check grants.contract: nodes without a token are not decided about"));
        }
        Some(_) | None => {}
    }
    let tag = match config.finality {
        Finality::Latest => None,
        Finality::Safe => Some("safe"),
        Finality::Finalized => Some("finalized"),
    };
    if let (Some(tag), None) = (tag, &a.last_final) {
        let detail = format!("does not know the tag \"{tag}\": no new peer would be admitted");
        out.push(Finding::warn(name, detail, "use another endpoint, or another grants.finality"));
    }
    if !a.logs {
        let detail = "does not return 2,000 blocks of events at once (eth_getLogs)";
        out.push(Finding::warn(name, detail, "none needed: smaller chunks are requested automatically"));
    }
    if !a.block_by_number {
        let detail = "does not return blocks by number (eth_getBlockByNumber): reorganisations could not be followed";
        out.push(Finding::fail(name, detail, another));
        return (out, Some(latest.number));
    }
    if !a.state_by_hash {
        out.push(Finding::fail(name, "does not read state by block hash (eth_call, EIP-1898)", another));
        return (out, Some(latest.number));
    }
    if let Some(Err(fault)) = &a.proof {
        let detail =
            format!("gives no proof of the contract's storage (eth_getProof, grants.verify = \"proof\"): {fault}");
        out.push(Finding::warn(
            name,
            detail,
            "name an endpoint that does, of an archive node with finality = \"finalized\"",
        ));
    }
    let age = a.latest_time.map(|t| now.secs().saturating_sub(t));
    if !config.stall.is_zero() && age.is_some_and(|age| age > config.stall.as_secs()) {
        let detail = "seems to be stuck: its newest block is older than grants.stall";
        out.push(Finding::warn(name, detail, "use another endpoint, unless this board's clock is wrong"));
    }
    out.insert(0, Finding::ok(name, summary(a, latest, age, tag, config)));
    (out, Some(latest.number))
}

fn summary(a: &EndpointAnswers, latest: &Head, age: Option<u64>, tag: Option<&str>, config: &Grants) -> String {
    let age = age.map_or(String::new(), |s| format!(", {s} s old"));
    let lag = match (tag, &a.last_final) {
        (Some(tag), Some(f)) => format!(", {tag} {} behind", latest.number.saturating_sub(f.number)),
        (Some(_) | None, None) | (None, Some(_)) => String::new(),
    };
    let client = a.client.as_ref().map_or(String::new(), |name| format!(", {name}"));
    format!("chain {}, block {}{age}{lag}, {} ms{client}", config.chain_id, latest.number, a.took.as_millis())
}

#[cfg(test)]
mod tests {
    use super::*;
    use spoke_grants::abi::ContractProbe;
    use std::time::Duration;

    const NOW: Wall = Wall(1_800_000_000);

    fn config() -> Grants {
        let text = "[grants]\nendpoints = [\"http://127.0.0.1:1\"]\ncontract = \"0x37d2106bADB01dd5bE1926e45D172Cb4203C4186\"\nchain_id = 1\nfinality = \"safe\"\n[[interface]]\nname = \"wg0\"\naccess = \"nft\"\n";
        spoke_config::Config::from_text(Some(("test", text)), []).unwrap().grants.unwrap()
    }

    fn head(number: u64) -> Option<Head> {
        Some(Head { number, parent: None, asked: None, chain_id: 1 })
    }

    fn good(height: u64) -> EndpointAnswers {
        EndpointAnswers {
            took: Duration::from_millis(7),
            chain_id: Some(1),
            client: Some("anvil/1".into()),
            latest: head(height),
            latest_time: Some(NOW.secs() - 2),
            last_final: head(height - 2),
            logs: true,
            block_by_number: true,
            state_by_hash: true,
            contract: Some(ContractProbe { exists: true, erc721: true }),
            proof: None,
            common: Some(BlockRef::default()),
        }
    }

    fn evaluate(answers: Vec<EndpointAnswers>) -> Vec<(Level, String)> {
        let probed: Vec<_> =
            answers.into_iter().map(|a| EndpointProbe { name: "rpc".into(), answers: Ok(a) }).collect();
        endpoints(Ok(&probed), &config(), NOW).into_iter().map(|f| (f.level, f.detail)).collect()
    }

    #[test]
    fn usable_endpoint_is_summarised() {
        let expected = "chain 1, block 40, 2 s old, safe 2 behind, 7 ms, anvil/1".to_owned();
        assert_eq!(evaluate(vec![good(40)]), [(Level::Ok, expected)]);
    }

    #[test]
    fn each_missing_method_has_a_finding() {
        let without = |change: fn(&mut EndpointAnswers), level, words: &str| {
            let mut answers = good(40);
            change(&mut answers);
            let found = evaluate(vec![answers]);
            assert!(found.iter().any(|(l, d)| *l == level && d.contains(words)), "{words}: {found:?}");
        };
        without(|a| a.chain_id = None, Level::Fail, "does not report its chain");
        without(|a| a.chain_id = Some(2), Level::Fail, "is on chain 2, not on 1");
        without(|a| a.latest = None, Level::Fail, "does not run code");
        without(|a| a.last_final = None, Level::Warn, "does not know the tag \"safe\"");
        without(|a| a.logs = false, Level::Warn, "2,000 blocks");
        without(|a| a.block_by_number = false, Level::Fail, "blocks by number");
        without(|a| a.state_by_hash = false, Level::Fail, "EIP-1898");
        without(|a| a.latest_time = Some(0), Level::Warn, "stuck");
        without(|a| a.contract = Some(ContractProbe::default()), Level::Fail, "has no contract at 0x37d2");
        let other = |a: &mut EndpointAnswers| a.contract = Some(ContractProbe { exists: true, erc721: false });
        without(other, Level::Warn, "is no ERC-721 contract");
    }

    #[test]
    fn endpoint_with_another_block_is_named() {
        let other = BlockRef { hash: alloy_primitives::B256::repeat_byte(7), ..BlockRef::default() };
        let found = evaluate(vec![good(40), EndpointAnswers { common: Some(other), ..good(40) }, good(40)]);
        let levels: Vec<Level> = found.iter().map(|(l, _)| *l).collect();
        assert_eq!(levels, [Level::Ok, Level::Fail, Level::Ok], "{found:?}");
        assert!(found[1].1.contains("contradicts the others: block 0 is 0x0707"), "{found:?}");
        // One against one: which of them is false is not known.
        let found = evaluate(vec![good(40), EndpointAnswers { common: Some(other), ..good(40) }]);
        assert!(found.iter().all(|(l, _)| *l == Level::Ok), "{found:?}");
    }

    #[test]
    fn refuted_claim_of_the_supervisor_is_named() {
        let claim = RefutedClaim { endpoint: "https://a".into(), claim: "block 7 is final".into() };
        let found = refuted(&[claim]);
        assert_eq!((found.len(), found[0].level, found[0].what.as_str()), (1, Level::Warn, "https://a"));
        assert!(found[0].detail.ends_with("within the last hour: block 7 is final"), "{found:?}");
    }

    #[test]
    fn lagging_endpoint_is_a_warning() {
        let found = evaluate(vec![good(40), good(34), good(35)]);
        assert_eq!(found.iter().filter(|(l, d)| *l == Level::Warn && d == "6 blocks behind the others").count(), 1);
    }

    #[test]
    fn missing_quorum_fails() {
        let found = evaluate(vec![EndpointAnswers { chain_id: None, ..good(40) }]);
        assert!(found.iter().any(|(l, d)| *l == Level::Fail && d.contains("0 of the 1 endpoints")), "{found:?}");
    }
}
