//! `spoke grants`: who is admitted and why, from the running supervisor; or one query to the chain.
use crate::config_file::{load, socket};
use alloy_primitives::Address;
use serde::Serialize;
use spoke_api::socket::SocketRequest;
use spoke_chain::reader::ChainReader;
use spoke_command::text::Lines;
use spoke_command::{Failure, Outcome, block_on, print};
use spoke_config::grants::Grants;
use spoke_grants::abi::Malformed;
use spoke_grants::jsonrpc::{At, BlockRef};
use spoke_grants::policy::Pair;
use spoke_grants::policy::{Decision, VERIFICATION_ERROR};
use spoke_grants::report::{Report, Row};
use spoke_model::key::PublicKey;
use spoke_model::node_id::NodeId;
use spoke_model::time::{Boot, Wall};
use spoke_model::tree::Tree;
use spoke_sys::clock::{Clock as _, SystemClock};
use spoke_sys::rpc::Http;
use spoke_sys::socket::call;
use std::path::Path;
use std::sync::Arc;

mod change;
use change::{Change, Sender};

/// `spoke grants`.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Show every candidate: admitted or not, why, and how old the decision is
    List,
    /// Show everything about one node
    Show {
        /// The node's id
        node: NodeId,
    },
    /// Ask the chain now, with the configured quorum, whether KEY may act as NODE; exit code 1 if not
    Verify {
        /// The node's id
        node: NodeId,
        /// Its WireGuard public key
        key: PublicKey,
        /// At this height instead of the newest and the final one
        #[arg(long)]
        block: Option<u64>,
    },
    /// Have the running supervisor verify everything again
    Refresh,
    /// Grant access to NODE with KEY by a new token of the holder TO; for the contract's owner
    Mint {
        /// The node's id
        node: NodeId,
        /// Its WireGuard public key
        key: PublicKey,
        /// The token's holder
        to: Address,
        /// Who sends it
        #[command(flatten)]
        sender: Sender,
    },
    /// Revoke the access of NODE; for the contract's owner
    Revoke {
        /// The node's id
        node: NodeId,
        /// Who sends it
        #[command(flatten)]
        sender: Sender,
    },
    /// Give the token of NODE to the holder TO; for its holder
    Transfer {
        /// The node's id
        node: NodeId,
        /// The next holder
        to: Address,
        /// Who sends it
        #[command(flatten)]
        sender: Sender,
    },
    /// Destroy the token of NODE; for its holder, where the contract has `burn`
    Burn {
        /// The node's id
        node: NodeId,
        /// Who sends it
        #[command(flatten)]
        sender: Sender,
    },
}

/// Runs the command.
pub fn run(config: &Path, command: &Command, json: bool) -> Outcome {
    let grants = || {
        super::remembered::effective(load(config)?).grants().cloned().map(Arc::new).ok_or_else(|| {
            Failure::BadInput(
                "there is no [grants] section that says whom to ask, and the control plane names no contract".into(),
            )
        })
    };
    match command {
        Command::List => {
            let report: Report = call(&socket(config)?, &SocketRequest::Grants)?;
            print(&if json { in_json(&report)? } else { list(&report, SystemClock.now()) });
            Ok(())
        }
        Command::Show { node } => {
            let report: Report = call(&socket(config)?, &SocketRequest::Grants)?;
            let rows: Vec<&Row> = report.rows.iter().filter(|r| r.node == *node).collect();
            if rows.is_empty() {
                return Err(Failure::Failed(anyhow::anyhow!("no interface has a candidate named {node}")));
            }
            print(&if json { in_json(&rows)? } else { show(&rows, &report, SystemClock.now()) });
            Ok(())
        }
        Command::Verify { node, key, block } => verify(grants()?, (node.clone(), *key), *block, json),
        Command::Refresh => {
            let _: serde_json::Value = call(&socket(config)?, &SocketRequest::GrantsRefresh)?;
            super::answer(json, &[("result", "everything is verified again")], "")
        }
        Command::Mint { node: n, key, to, sender } => {
            change::run(grants()?, Change::Mint(n.clone(), *key, *to), *sender, json)
        }
        Command::Revoke { node: n, sender } => change::run(grants()?, Change::Revoke(n.clone()), *sender, json),
        Command::Transfer { node: n, to, sender } => {
            change::run(grants()?, Change::Transfer(n.clone(), *to), *sender, json)
        }
        Command::Burn { node: n, sender } => change::run(grants()?, Change::Burn(n.clone()), *sender, json),
    }
}

/// A report with moments in RFC 3339 and durations in seconds.
fn in_json<T: Serialize>(report: &T) -> Result<String, serde_json::Error> {
    let tree: Tree = serde_json::from_slice(&serde_json::to_vec(report)?)?;
    super::document(with_times(tree, SystemClock.now(), SystemClock.wall()))
}

/// `doubt` is an age, every other span of time a moment after boot, and `heard_wall` one of them by the wall clock.
fn with_times(tree: Tree, now: Boot, wall: Wall) -> Tree {
    let part = |span: &[(String, Tree)], name: &str| match span.iter().find(|(key, _)| key == name) {
        Some((_, Tree::Unsigned(n))) => Some(*n),
        _ => None,
    };
    let entry = |(key, value): (String, Tree)| {
        let span = match &value {
            Tree::Map(span) if span.len() == 2 => part(span, "secs").zip(part(span, "nanos")),
            _ => None,
        };
        match (key.as_str(), span, value) {
            ("heard_wall", _, _) => None,
            ("doubt", Some((secs, _)), _) => Some(("doubt_seconds".to_owned(), Tree::Unsigned(secs))),
            ("doubt", None, null) => Some(("doubt_seconds".to_owned(), null)),
            (_, Some((secs, _)), _) => {
                let ago = now.since(Boot::from_secs(secs));
                Some((key, Tree::Text(wall.before(ago).to_string())))
            }
            (_, None, value) => Some((key, with_times(value, now, wall))),
        }
    };
    match tree {
        Tree::List(items) => Tree::List(items.into_iter().map(|item| with_times(item, now, wall)).collect()),
        Tree::Map(entries) => Tree::Map(entries.into_iter().filter_map(entry).collect()),
        other => other,
    }
}

fn verify(grants: Arc<Grants>, pair: Pair, block: Option<u64>, json: bool) -> Outcome {
    let rpc = Http::new(&grants)?;
    let mut chain = ChainReader::new(rpc, SystemClock, grants.clone());
    let contract = grants.contract;
    match block_on(query(&mut chain, &pair, block))? {
        Ok((decisions, unreadable)) => {
            let granted = decisions.iter().all(|(_, _, d)| d.is_some_and(|d| d.reason.grants()));
            if json {
                let decision = |(at, block, d): &(&str, BlockRef, Option<Decision>)| {
                    let text = |value: Option<String>| value.map_or(Tree::Null, Tree::Text);
                    super::object(vec![
                        ("at", Tree::Text((*at).to_owned())),
                        ("block", Tree::Unsigned(block.number)),
                        ("code", text(d.map(|d| d.reason.to_string()))),
                        ("token_id", text(d.and_then(|d| d.token_id).map(|id| id.to_string()))),
                        ("owner", text(d.and_then(|d| d.owner).map(|o| o.to_string()))),
                    ])
                };
                print(&super::document(super::object(vec![
                    ("granted", Tree::Bool(granted)),
                    ("verified_by", Tree::Text(grants.verify.name().to_owned())),
                    ("decisions", Tree::List(decisions.iter().map(decision).collect())),
                ]))?);
            } else {
                for (at, block, decision) in &decisions {
                    print(&line(at, *block, decision.as_ref()));
                }
                print(&format!(
                    "by      {}, quorum {} of {}\n",
                    grants.verify.name(),
                    grants.quorum,
                    grants.endpoints.len()
                ));
            }
            if let Some(reason) = unreadable {
                return Err(Failure::Failed(anyhow::anyhow!(
                    "{VERIFICATION_ERROR}: contract {contract}: {reason}: check grants.contract and grants.chain_id"
                )));
            }
            if granted { Ok(()) } else { Err(Failure::Silent) }
        }
        Err(e) => Err(Failure::Failed(anyhow::anyhow!("{VERIFICATION_ERROR}: {e}"))),
    }
}

type Decisions = Vec<(&'static str, BlockRef, Option<Decision>)>;

/// The decisions, and why the contract could not be read.
type Answer = (Decisions, Option<Malformed>);

async fn query(
    chain: &mut ChainReader<Http, SystemClock>,
    pair: &Pair,
    block: Option<u64>,
) -> Result<Answer, anyhow::Error> {
    if let Some(number) = block {
        let Some(pin) = chain.find_block(At::Number(number)).await? else {
            anyhow::bail!("no endpoint has block {number}")
        };
        let verified = chain.verify(pin, std::slice::from_ref(pair)).await?;
        let decision = verified.decisions.into_iter().flatten().next().flatten();
        return Ok((vec![("asked", pin, decision)], verified.unreadable));
    }
    let decided = chain.decide(pair).await?;
    let mut out = vec![("newest", decided.newest.0, decided.newest.1)];
    out.extend(decided.last_final.map(|(pin, d)| ("final", pin, d)));
    Ok((out, decided.unreadable))
}

fn line(at: &str, block: BlockRef, decision: Option<&Decision>) -> String {
    let Some(d) = decision else { return format!("{at:<7} block {:<10} {VERIFICATION_ERROR}\n", block.number) };
    let token = d.token_id.map(|id| format!("  token {id}")).unwrap_or_default();
    let owner = d.owner.map(|o| format!("  owner {o}")).unwrap_or_default();
    format!("{at:<7} block {:<10} {}{token}{owner}\n", block.number, d.reason)
}

/// The report as text.
fn list(r: &Report, now: Boot) -> String {
    let mut out = head(r, now);
    out.blank();
    let _ = writeln!(out, "{:<28} {:<12} {:<20} {:>10}  {:>8}", "node", "key", "reason", "block", "age");
    for row in &r.rows {
        let key = row.key.to_string();
        let age = row.decided.map_or("-".to_owned(), |at| age(now.since(at).as_secs()));
        let mut note = Lines::default();
        if let Some(height) = row.held_until {
            let _ = write!(note, "  waits for block {height} to be final");
        }
        if let Some(since) = row.doubt {
            let _ = write!(note, "  changed, not verified for {}", self::age(since.as_secs()));
        }
        let _ = writeln!(
            out,
            "{:<28} {:<12} {:<20} {:>10}  {age:>8}{}",
            row.node.as_str(),
            format!("{}…", key.get(..10).unwrap_or_default()),
            row.code,
            row.block,
            String::from(note)
        );
    }
    out.blank();
    let _ = writeln!(out, "{:<48} {:>10} {:>10}  state", "endpoint", "block", "latency");
    for e in &r.endpoints {
        let height = e.height.map_or("-".to_owned(), |h| h.to_string());
        let latency = e.latency_ms.map_or("-".to_owned(), |ms| format!("{ms:.0} ms"));
        let state = match (e.other_chain, e.failures, e.answers) {
            (Some(chain), _, _) => format!("on chain {chain}"),
            _ if e.refuted.is_some() => format!("REFUTED: {}", e.refuted.as_deref().unwrap_or_default()),
            (None, 0, 0) => "not asked".to_owned(),
            (None, 0, _) => "answers".to_owned(),
            (None, failures, _) => format!("failed {failures} times in a row"),
        };
        let _ = writeln!(out, "{:<48} {height:>10} {latency:>10}  {state}", e.name);
    }
    out.into()
}

fn head(r: &Report, now: Boot) -> Lines {
    let mut out = Lines::default();
    let quorum =
        r.last_quorum.map_or("never in this run".to_owned(), |at| format!("{} ago", age(now.since(at).as_secs())));
    let height = r.height.map_or("-".to_owned(), |h| h.to_string());
    let _ = writeln!(
        out,
        "{}: {} of {} admitted, verified by {}; last quorum {quorum}, known up to block {height}",
        r.phase.name(),
        r.admitted,
        r.rows.len(),
        r.verify.name()
    );
    if let Some(status) = &r.subscription {
        let _ = writeln!(out, "subscription: {status}");
    }
    if let Some(outage) = &r.unreachable {
        let _ = writeln!(
            out,
            "! {} for {}: {}",
            if outage.contract { "contract unreadable" } else { "no quorum of chain endpoints" },
            age(now.since(outage.since).as_secs()),
            outage.reason
        );
    }
    if let Some(c) = &r.condition {
        let _ = writeln!(out, "! {}", c.detail);
    }
    out
}

fn show(rows: &[&Row], r: &Report, now: Boot) -> String {
    let mut out = head(r, now);
    for row in rows {
        out.blank();
        let _ = writeln!(out, "node     {}", row.node);
        let _ = writeln!(out, "key      {}", row.key);
        let _ = writeln!(out, "admitted {}", if row.admitted { "yes" } else { "no" });
        let _ = writeln!(out, "reason   {}", row.code);
        if let Some(token) = &row.token_id {
            let _ = writeln!(out, "token    {token}");
        }
        if let Some(owner) = &row.owner {
            let _ = writeln!(out, "owner    {owner}");
        }
        if let Some(at) = row.decided {
            let _ = writeln!(out, "decided  {} ago, holds for block {}", age(now.since(at).as_secs()), row.block);
        }
        if let Some(height) = row.held_until {
            let _ = writeln!(out, "waits    until block {height} is final");
        }
        if let Some(since) = row.doubt {
            let _ = writeln!(out, "doubt    a change was seen {} ago and could not be verified", age(since.as_secs()));
        }
    }
    out.into()
}

fn age(secs: u64) -> String {
    match secs {
        0..=119 => format!("{secs}s"),
        120..=7199 => format!("{}m", secs / 60),
        7200..=172_799 => format!("{}h", secs / 3600),
        _ => format!("{}d", secs / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloy_primitives::U256;
    use spoke_grants::policy::Reason;

    #[test]
    fn moments_are_rfc_3339_and_ages_seconds() {
        let text =
            r#"{"heard":{"secs":90,"nanos":5},"heard_wall":1,"rows":[{"doubt":{"secs":7,"nanos":0},"decided":null}]}"#;
        let tree = with_times(serde_json::from_str(text).unwrap(), Boot::from_secs(100), Wall(86_410));
        let expected = r#"{"heard":"1970-01-02T00:00:00Z","rows":[{"doubt_seconds":7,"decided":null}]}"#;
        assert_eq!(serde_json::to_string(&tree).unwrap(), expected);
    }

    #[test]
    fn line_contains_block_reason_token_and_owner() {
        let block = BlockRef { number: 7, ..BlockRef::default() };
        let d = Decision { reason: Reason::NodeInactive, token_id: Some(U256::from(3)), owner: Some(Address::ZERO) };
        let text = line("newest", block, Some(&d));
        assert!(text.contains("NODE_INACTIVE") && text.contains("token 3") && text.contains("block 7"), "{text}");
        assert!(line("newest", block, None).contains(VERIFICATION_ERROR));
    }
}
