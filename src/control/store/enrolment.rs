//! How each node came into the fleet.
use super::error::StoreError;
use super::sql::Tx;
use super::token::Token;
use spoke_model::node_id::NodeId;

impl Tx {
    /// Stores which token enrolled a node, in place of the one before.
    pub async fn put_enrolment(&mut self, node: &NodeId, token: &str) -> Result<(), StoreError> {
        let sql = "INSERT INTO enrolment (node, token) VALUES ($1, $2)
            ON CONFLICT (node) DO UPDATE SET token = excluded.token";
        self.run(sql, &[node.as_str().into(), token.into()]).await.map(drop)
    }

    /// The token that enrolled a node; `None`: not enrolled, or by a release that did not store it.
    pub async fn enrolling_token(&mut self, node: &NodeId) -> Result<Option<Token>, StoreError> {
        let sql = "SELECT t.* FROM enrolment e JOIN token t ON t.id = e.token WHERE e.node = $1";
        self.row(sql, &[node.as_str().into()]).await?.map(|row| Token::read(&row)).transpose()
    }
}
