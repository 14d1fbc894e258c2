//! Nonces of requests that change something, shared by all control planes, so that none of them accepts a replay.
use super::error::StoreError;
use super::sql::Tx;
use spoke_model::node_id::NodeId;

impl Tx {
    /// Records a request's nonce. `false`: it is recorded already, so the request is a replay.
    pub async fn use_nonce(&mut self, node: &NodeId, nonce: &str, until_ms: i64) -> Result<bool, StoreError> {
        let sql = "INSERT INTO used_nonce (node, nonce, until_ms) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";
        Ok(self.run(sql, &[node.as_str().into(), nonce.into(), until_ms.into()]).await? == 1)
    }
}
