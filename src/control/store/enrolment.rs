//! How each node came into the fleet.
use super::error::StoreError;
use super::sql::Tx;
use super::token::{Token, ValidToken};
use spoke_model::node_id::NodeId;

impl Tx {
    /// Stores which token enrolled a node, in place of the one before.
    pub async fn put_enrolment(&mut self, node: &NodeId, token: &ValidToken) -> Result<(), StoreError> {
        let sql = "INSERT INTO enrolment (node, token, key_proof) VALUES ($1, $2, $3)
            ON CONFLICT (node) DO UPDATE SET token = excluded.token, key_proof = excluded.key_proof";
        self.run(sql, &[node.as_str().into(), token.id.as_str().into(), token.key_proof.into()]).await.map(drop)
    }

    /// Whether a node had to prove the possession of its WireGuard key at its enrolment, so that it can do so again.
    pub async fn proves_keys(&mut self, node: &NodeId) -> Result<bool, StoreError> {
        let row = self.row("SELECT key_proof FROM enrolment WHERE node = $1", &[node.as_str().into()]).await?;
        Ok(row.map(|r| r.opt_int("key_proof")).transpose()?.flatten() == Some(1))
    }

    /// The token that enrolled a node; `None`: not enrolled, or by a release that did not store it.
    pub async fn enrolling_token(&mut self, node: &NodeId) -> Result<Option<Token>, StoreError> {
        let sql = "SELECT t.* FROM enrolment e JOIN token t ON t.id = e.token WHERE e.node = $1";
        self.row(sql, &[node.as_str().into()]).await?.map(|row| Token::read(&row)).transpose()
    }
}
