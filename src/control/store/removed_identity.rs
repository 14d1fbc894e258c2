//! The identity keys of removed devices: each is told of its removal, whoever holds its name since.
use super::error::StoreError;
use super::sql::Tx;
use spoke_model::node_id::NodeId;
use spoke_model::signature::VerifyKey;

/// Keys looked at for one name, the newest first.
const MAX_KEYS: i64 = 8;

impl Tx {
    /// Stores that the device with the identity key of `node` was removed.
    pub async fn put_removed_identity(&mut self, node: &NodeId, key: VerifyKey, now_ms: i64) -> Result<(), StoreError> {
        let sql = "INSERT INTO removed_identity (identity_key, node, removed_ms) VALUES ($1, $2, $3)
            ON CONFLICT (identity_key) DO UPDATE SET node = excluded.node, removed_ms = excluded.removed_ms";
        self.run(sql, &[key.to_string().into(), node.as_str().into(), now_ms.into()]).await.map(drop)
    }

    /// Forgets the removal of a device that is enrolled again.
    pub async fn delete_removed_identity(&mut self, key: VerifyKey) -> Result<(), StoreError> {
        self.run("DELETE FROM removed_identity WHERE identity_key = $1", &[key.to_string().into()]).await.map(drop)
    }

    /// The name under which the device with this identity key was removed.
    pub async fn removed_name(&mut self, key: VerifyKey) -> Result<Option<NodeId>, StoreError> {
        let sql = "SELECT node FROM removed_identity WHERE identity_key = $1";
        self.row(sql, &[key.to_string().into()]).await?.map(|row| row.parsed("node")).transpose()
    }

    /// The identity keys of devices that were removed under the name `node`, newest first.
    pub async fn removed_identities(&mut self, node: &NodeId) -> Result<Vec<VerifyKey>, StoreError> {
        let sql =
            "SELECT identity_key FROM removed_identity WHERE node = $1 ORDER BY removed_ms DESC, identity_key LIMIT $2";
        let rows = self.rows(sql, &[node.as_str().into(), MAX_KEYS.into()]).await?;
        rows.iter().map(|row| row.parsed("identity_key")).collect()
    }

    /// The last generation of a removed node whose network was removed: its device may still hold it. 0: none.
    pub async fn removed_generation(&mut self, node: &NodeId) -> Result<u64, StoreError> {
        let sql = "SELECT MAX(generation) AS generation FROM removed_identity WHERE node = $1";
        let row = self.row(sql, &[node.as_str().into()]).await?;
        Ok(row.map(|r| r.opt_count("generation")).transpose()?.flatten().unwrap_or(0))
    }
}
