//! `spoke grants mint`, `revoke`, `transfer`, `burn`: prints the command for `cast`, or sends the transaction from an
//! account that the endpoint holds unlocked. This program never holds the key of an account.
use crate::cli::answer;
use alloy_primitives::{Address, U256, hex};
use spoke_chain::reader::ChainReader;
use spoke_command::{Failure, Outcome, block_on};
use spoke_config::grants::Grants;
use spoke_grants::jsonrpc::{Answer, Call};
use spoke_grants::policy::VERIFICATION_ERROR;
use spoke_grants::transaction::Transaction;
use spoke_model::key::PublicKey;
use spoke_model::node_id::NodeId;
use spoke_sys::clock::SystemClock;
use spoke_sys::rpc::{Http, Rpc as _};
use std::sync::Arc;

/// Who sends it.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Sender {
    /// Send it from this account, which the endpoint holds unlocked (a development chain); else print it for `cast`
    #[arg(long, value_name = "ADDRESS")]
    from: Option<Address>,
}

/// What to change.
#[derive(Clone, Debug)]
pub(super) enum Change {
    /// Mint a token for a node, its key and its holder.
    Mint(NodeId, PublicKey, Address),
    /// Revoke the token of a node.
    Revoke(NodeId),
    /// Give the token of a node to another holder.
    Transfer(NodeId, Address),
    /// Destroy the token of a node.
    Burn(NodeId),
}

/// Runs the command.
pub(super) fn run(grants: Arc<Grants>, change: Change, sender: Sender, json: bool) -> Outcome {
    let rpc = Http::new(&grants)?;
    block_on(async {
        let transaction = match change {
            Change::Mint(node, key, to) => Transaction::Mint { to, node, key },
            Change::Revoke(node) => Transaction::Revoke(token(&rpc, &grants, node).await?.0),
            Change::Burn(node) => Transaction::Burn(token(&rpc, &grants, node).await?.0),
            Change::Transfer(node, to) => {
                let (token, from) = token(&rpc, &grants, node).await?;
                Transaction::Transfer { from, to, token }
            }
        };
        match sender.from {
            None => {
                let line = transaction.cast_line(grants.contract, grants.chain_id);
                answer(json, &[("command", &line)], &format!("{line}\n"))
            }
            Some(from) => {
                let hash = send(&rpc, from, grants.contract, &transaction).await?;
                answer(json, &[("transaction", &hash)], &format!("{hash}\n"))
            }
        }
    })?
}

/// The token of a node and its holder at the newest block, by quorum.
async fn token(rpc: &Http, grants: &Arc<Grants>, node: NodeId) -> Result<(U256, Address), anyhow::Error> {
    let mut chain = ChainReader::new(rpc.clone(), SystemClock, grants.clone());
    // The token of the decision depends on the node alone.
    let pair = (node, PublicKey([0; 32]));
    let decided = chain.decide(&pair).await.map_err(|e| anyhow::anyhow!("{VERIFICATION_ERROR}: {e}"))?;
    if let Some(reason) = decided.unreadable {
        anyhow::bail!("{VERIFICATION_ERROR}: contract {}: {reason}: check grants.contract", grants.contract);
    }
    match decided.newest.1 {
        None => anyhow::bail!("{VERIFICATION_ERROR}: the token of {} could not be read", pair.0),
        Some(d) => d.token_id.zip(d.owner).ok_or_else(|| anyhow::anyhow!("no token has the node id {}", pair.0)),
    }
}

/// Sends the transaction once it was tried; returns its hash.
async fn send(rpc: &Http, from: Address, to: Address, transaction: &Transaction) -> Result<String, Failure> {
    let mut dry = true;
    loop {
        let call = Call::Send { from, to, data: transaction.data(), dry };
        let answer = rpc.ask(0, vec![call], 1 << 16).await?.answers.into_iter().flatten().next();
        let reason = match answer {
            Some(Answer::Bytes(_)) if dry => {
                dry = false;
                continue;
            }
            Some(Answer::Bytes(hash)) => return Ok(hex::encode_prefixed(hash)),
            Some(Answer::Refused(refusal)) => refusal.message,
            Some(_) | None => "it does not answer this call".to_owned(),
        };
        let remedy = "without --from the command is printed for cast, which signs with a key of yours";
        return Err(Failure::Failed(anyhow::anyhow!(
            "{} refuses the transaction from {from}: {reason}; {remedy}",
            rpc.name(0)
        )));
    }
}
