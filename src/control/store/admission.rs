//! What the contract says of nodes and their keys. It is kept until the chain says something else: silence changes nothing.
use super::sql::{StoreError, Tx};
use alloy_primitives::U256;
use serde::Serialize;
use spoke_grants::chain::Pair;
use spoke_grants::policy::Reason;
use spoke_model::key::PublicKey;
use spoke_model::node_id::NodeId;
use spoke_model::time::Wall;
use std::collections::{BTreeMap, BTreeSet};

/// What the chain says of one node and key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Why it is a peer, or is not.
    pub reason: Reason,
    /// The node's token, if there is one.
    pub token_id: Option<U256>,
}

/// How far the chain is followed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct ChainView {
    /// The access contract.
    pub contract: String,
    /// The chain it is on.
    pub chain_id: u64,
    /// The control plane that follows it at present.
    pub follower: String,
    /// RFC 3339: when that one was last seen at work.
    pub looked_at: String,
    /// RFC 3339: when the chain was last heard; null: not since that one began.
    pub heard_at: Option<String>,
    /// Events are known up to this block.
    pub height: Option<u64>,
    /// Why it is not heard, or what else is wrong.
    pub trouble: Option<String>,
}

/// The same as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The access contract.
    pub contract: String,
    /// The chain it is on.
    pub chain_id: u64,
    /// Who follows it.
    pub follower: String,
    /// When the chain was last heard, in milliseconds since 1970.
    pub heard_ms: Option<i64>,
    /// Events are known up to this block.
    pub height: Option<u64>,
    /// What is wrong.
    pub trouble: Option<String>,
}

impl Tx {
    /// Nodes and keys the chain has to be asked about: of every node in a network with access by NFT, enrolled or waiting.
    pub async fn candidates(&mut self) -> Result<BTreeSet<Pair>, StoreError> {
        let sql = "SELECT n.id, n.wireguard_key, n.next_key FROM node n JOIN network w ON w.name = n.network
            WHERE n.state IN ('active', 'pending') AND n.role = 'node' AND w.access = 'nft'";
        let mut pairs = BTreeSet::new();
        for row in self.rows(sql, &[]).await? {
            let node: NodeId = row.parsed("id")?;
            let keys = [row.opt_parsed::<PublicKey>("wireguard_key")?, row.opt_parsed("next_key")?];
            pairs.extend(keys.into_iter().flatten().map(|key| (node.clone(), key)));
        }
        Ok(pairs)
    }

    /// Every verdict that is kept.
    pub async fn verdicts(&mut self) -> Result<BTreeMap<Pair, Verdict>, StoreError> {
        let sql = "SELECT node, wireguard_key, code, token_id FROM admission";
        let read = |row: &super::sql::Row| Ok(((row.parsed("node")?, row.parsed("wireguard_key")?), verdict(row)?));
        self.rows(sql, &[]).await?.iter().map(read).collect()
    }

    /// What the chain says of a node and key, if it was heard about them.
    pub async fn verdict(&mut self, node: &NodeId, key: PublicKey) -> Result<Option<Verdict>, StoreError> {
        let sql = "SELECT code, token_id FROM admission WHERE node = $1 AND wireguard_key = $2";
        self.row(sql, &[node.as_str().into(), key.to_string().into()]).await?.map(|r| verdict(&r)).transpose()
    }

    /// Keeps what the chain says.
    pub async fn put_verdict(&mut self, pair: &Pair, verdict: &Verdict, now_ms: i64) -> Result<(), StoreError> {
        let sql = "INSERT INTO admission (node, wireguard_key, granted, code, token_id, decided_ms)
            VALUES ($1, $2, $3, $4, $5, $6)
            ON CONFLICT (node, wireguard_key) DO UPDATE SET granted = excluded.granted, code = excluded.code,
            token_id = excluded.token_id, decided_ms = excluded.decided_ms";
        let values = [
            pair.0.as_str().into(),
            pair.1.to_string().into(),
            verdict.reason.grants().into(),
            verdict.reason.code().into(),
            verdict.token_id.map(|id| id.to_string()).into(),
            now_ms.into(),
        ];
        self.run(sql, &values).await.map(drop)
    }

    /// Forgets what the chain said of nodes and keys that nobody asks about any more.
    pub async fn forget_verdicts(&mut self) -> Result<u64, StoreError> {
        let sql = "DELETE FROM admission WHERE NOT EXISTS (
            SELECT 1 FROM node n JOIN network w ON w.name = n.network
            WHERE n.id = admission.node AND admission.wireguard_key IN (n.wireguard_key, n.next_key)
            AND n.state IN ('active', 'pending') AND n.role = 'node' AND w.access = 'nft')";
        self.run(sql, &[]).await
    }

    /// Tells people how far the chain is followed.
    pub async fn put_chain(&mut self, progress: &Progress, now_ms: i64) -> Result<(), StoreError> {
        self.run("DELETE FROM chain", &[]).await?;
        let sql = "INSERT INTO chain (contract, chain_id, follower, looked_ms, heard_ms, height, trouble)
            VALUES ($1, $2, $3, $4, $5, $6, $7)";
        let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let values = [
            progress.contract.as_str().into(),
            signed(progress.chain_id).into(),
            progress.follower.as_str().into(),
            now_ms.into(),
            progress.heard_ms.into(),
            progress.height.map(signed).into(),
            progress.trouble.clone().into(),
        ];
        self.run(sql, &values).await.map(drop)
    }

    /// How far the chain is followed; `None`: nobody ever has.
    pub async fn chain_view(&mut self) -> Result<Option<ChainView>, StoreError> {
        let Some(row) = self.row("SELECT * FROM chain", &[]).await? else { return Ok(None) };
        let time = |ms: u64| Wall(ms / 1000).to_string();
        let count = |column| -> Result<Option<u64>, StoreError> {
            Ok(row.opt_int(column)?.and_then(|n| u64::try_from(n).ok()))
        };
        Ok(Some(ChainView {
            contract: row.text("contract")?,
            chain_id: row.count("chain_id")?,
            follower: row.text("follower")?,
            looked_at: time(row.count("looked_ms")?),
            heard_at: count("heard_ms")?.map(time),
            height: count("height")?,
            trouble: row.opt_text("trouble")?,
        }))
    }
}

fn verdict(row: &super::sql::Row) -> Result<Verdict, StoreError> {
    let code = row.text("code")?;
    let reason = Reason::ALL.into_iter().find(|r| r.code() == code).ok_or(StoreError::Unreadable("admission.code"))?;
    Ok(Verdict { reason, token_id: row.opt_parsed("token_id")? })
}
