//! The contract's decisions on nodes and keys, kept until the contract decides otherwise: an outage changes nothing.
use super::error::StoreError;
use super::row::Row;
use super::sql::Tx;
use alloy_primitives::U256;
use spoke_grants::policy::{Pair, Reason};
use spoke_model::key::PublicKey;
use spoke_model::node_id::NodeId;
use std::collections::{BTreeMap, BTreeSet};

/// The contract's decision on one node and key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admission {
    /// Why it is a peer, or is not.
    pub reason: Reason,
    /// The node's token.
    pub token_id: Option<U256>,
}

/// How far the contract's events have been read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainProgress {
    /// The access contract.
    pub contract: String,
    /// The chain it is on.
    pub chain_id: u64,
    /// The control plane that reads the chain.
    pub follower: String,
    /// When that one last reported, in milliseconds since 1970.
    pub updated_ms: u64,
    /// When the chain last answered, in milliseconds since 1970.
    pub answered_ms: Option<u64>,
    /// Events are known up to this block.
    pub height: Option<u64>,
    /// Why the chain does not answer, or what else is wrong.
    pub trouble: Option<String>,
}

impl Tx {
    /// Nodes and keys to ask the contract about: of every node, active or pending, in a network with access by NFT.
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

    /// Every stored decision.
    pub async fn admissions(&mut self) -> Result<BTreeMap<Pair, Admission>, StoreError> {
        let sql = "SELECT node, wireguard_key, code, token_id FROM admission";
        let read = |row: &Row| Ok(((row.parsed("node")?, row.parsed("wireguard_key")?), read(row)?));
        self.rows(sql, &[]).await?.iter().map(read).collect()
    }

    /// The decision on a node and key; `None`: none yet.
    pub async fn admission(&mut self, node: &NodeId, key: PublicKey) -> Result<Option<Admission>, StoreError> {
        let sql = "SELECT code, token_id FROM admission WHERE node = $1 AND wireguard_key = $2";
        self.row(sql, &[node.as_str().into(), key.to_string().into()]).await?.map(|r| read(&r)).transpose()
    }

    /// Stores a decision in place of the one before.
    pub async fn put_admission(&mut self, pair: &Pair, admission: &Admission, now_ms: i64) -> Result<(), StoreError> {
        let sql = "INSERT INTO admission (node, wireguard_key, granted, code, token_id, decided_ms)
            VALUES ($1, $2, $3, $4, $5, $6)
            ON CONFLICT (node, wireguard_key) DO UPDATE SET granted = excluded.granted, code = excluded.code,
            token_id = excluded.token_id, decided_ms = excluded.decided_ms";
        let values = [
            pair.0.as_str().into(),
            pair.1.to_string().into(),
            admission.reason.grants().into(),
            admission.reason.code().into(),
            admission.token_id.map(|id| id.to_string()).into(),
            now_ms.into(),
        ];
        self.run(sql, &values).await.map(drop)
    }

    /// Deletes decisions on nodes and keys that are no longer candidates; returns how many.
    pub async fn prune_admissions(&mut self) -> Result<u64, StoreError> {
        let sql = "DELETE FROM admission WHERE NOT EXISTS (
            SELECT 1 FROM node n JOIN network w ON w.name = n.network
            WHERE n.id = admission.node AND admission.wireguard_key IN (n.wireguard_key, n.next_key)
            AND n.state IN ('active', 'pending') AND n.role = 'node' AND w.access = 'nft')";
        self.run(sql, &[]).await
    }

    /// Stores how far the contract's events have been read.
    pub async fn put_chain_progress(&mut self, progress: &ChainProgress) -> Result<(), StoreError> {
        self.run("DELETE FROM chain", &[]).await?;
        let sql = "INSERT INTO chain (contract, chain_id, follower, looked_ms, heard_ms, height, trouble)
            VALUES ($1, $2, $3, $4, $5, $6, $7)";
        let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let values = [
            progress.contract.as_str().into(),
            signed(progress.chain_id).into(),
            progress.follower.as_str().into(),
            signed(progress.updated_ms).into(),
            progress.answered_ms.map(signed).into(),
            progress.height.map(signed).into(),
            progress.trouble.clone().into(),
        ];
        self.run(sql, &values).await.map(drop)
    }

    /// How far the contract's events have been read; `None`: no control plane ever did.
    pub async fn chain_progress(&mut self) -> Result<Option<ChainProgress>, StoreError> {
        let Some(row) = self.row("SELECT * FROM chain", &[]).await? else { return Ok(None) };
        Ok(Some(ChainProgress {
            contract: row.text("contract")?,
            chain_id: row.count("chain_id")?,
            follower: row.text("follower")?,
            updated_ms: row.count("looked_ms")?,
            answered_ms: row.opt_count("heard_ms")?,
            height: row.opt_count("height")?,
            trouble: row.opt_text("trouble")?,
        }))
    }
}

pub(super) fn reason_of(code: &str) -> Result<Reason, StoreError> {
    Reason::ALL.into_iter().find(|r| r.code() == code).ok_or(StoreError::Unreadable("admission.code"))
}

fn read(row: &Row) -> Result<Admission, StoreError> {
    Ok(Admission { reason: reason_of(&row.text("code")?)?, token_id: row.opt_parsed("token_id")? })
}
