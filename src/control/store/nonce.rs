//! Nonces of requests, shared by all control planes, so that none of them accepts a replay.
use super::error::StoreError;
use super::sql::Tx;
use spoke_model::node_id::NodeId;

/// A nonce that a request has used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsedNonce {
    /// The node that signed the request.
    pub node: NodeId,
    /// In hex.
    pub nonce: String,
    /// How long it is remembered, in milliseconds since 1970.
    pub until_ms: i64,
}

impl Tx {
    /// Records a request's nonce. `false`: it is recorded already, so the request is a replay.
    pub async fn use_nonce(&mut self, used: &UsedNonce) -> Result<bool, StoreError> {
        let sql = "INSERT INTO used_nonce (node, nonce, until_ms) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";
        let values = [used.node.as_str().into(), used.nonce.as_str().into(), used.until_ms.into()];
        Ok(self.run(sql, &values).await? == 1)
    }
}
