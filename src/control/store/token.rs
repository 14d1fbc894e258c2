//! Enrolment tokens: counted uses, expiry, stored as a hash.
use super::error::StoreError;
use super::row::Row;
use super::sql::Tx;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::rand::SecureRandom as _;
use spoke_model::node_id::NodeId;
use spoke_model::secret::Secret;
use spoke_model::signature::sha256_hex;
use spoke_model::time::Wall;

/// A token without its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// The part of it that is not secret.
    pub id: String,
    /// The network its nodes join.
    pub network: String,
    /// The only node it enrols, if it is bound to one.
    pub node: Option<NodeId>,
    /// For people.
    pub note: Option<String>,
    /// How often it was used.
    pub uses: u64,
    /// How often it may be used.
    pub max_uses: u64,
    /// Milliseconds since 1970.
    pub created_ms: u64,
    /// Milliseconds since 1970; `None`: never.
    pub expires_ms: Option<u64>,
    /// Milliseconds since 1970.
    pub revoked_ms: Option<u64>,
}

/// A token to be created.
#[derive(Clone, Debug)]
pub struct NewToken {
    /// The network its nodes join.
    pub network: String,
    /// The only node it enrols.
    pub node: Option<NodeId>,
    /// For people.
    pub note: Option<String>,
    /// How often it may be used.
    pub max_uses: u64,
    /// Milliseconds since 1970.
    pub expires_ms: Option<i64>,
    /// Whether a device must prove that it holds the WireGuard key it names; an older device cannot.
    pub key_proof: bool,
}

/// What a valid token allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValidToken {
    /// Its id.
    pub id: String,
    /// The network to join.
    pub network: String,
    /// Whether it is bound to this node.
    pub bound: bool,
    /// Whether the device must prove that it holds the WireGuard key it names.
    pub key_proof: bool,
}

impl Token {
    /// Enrolments it is still valid for at `now_ms`.
    pub fn uses_left(&self, now_ms: i64) -> u64 {
        let expired = self.expires_ms.is_some_and(|t| u64::try_from(now_ms).is_ok_and(|now| now >= t));
        if expired || self.revoked_ms.is_some() { 0 } else { self.max_uses.saturating_sub(self.uses) }
    }

    /// Why it does not enrol `node` at `now_ms`; `None`: it does.
    fn fault(&self, node: &NodeId, now_ms: i64) -> Option<String> {
        let (id, at) = (&self.id, |ms: u64| Wall(ms / 1000));
        if let Some(revoked) = self.revoked_ms {
            return Some(format!("token {id} was revoked at {}", at(revoked)));
        }
        if let Some(end) = self.expires_ms.filter(|t| u64::try_from(now_ms).is_ok_and(|now| now >= *t)) {
            return Some(format!("token {id} expired at {}", at(end)));
        }
        if self.uses >= self.max_uses {
            return Some(format!("token {id} was used {} of {} times", self.uses, self.max_uses));
        }
        let other = self.node.as_ref().filter(|bound| *bound != node)?;
        Some(format!("token {id} is for node {other}"))
    }

    pub(super) fn read(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: row.text("id")?,
            network: row.text("network")?,
            node: row.opt_parsed("node")?,
            note: row.opt_text("note")?,
            uses: row.count("uses")?,
            max_uses: row.count("max_uses")?,
            created_ms: row.count("created_ms")?,
            expires_ms: row.opt_count("expires_ms")?,
            revoked_ms: row.opt_count("revoked_ms")?,
        })
    }
}

/// What a token begins with.
const PREFIX: &str = "spk_";

/// Splits `PREFIX`, id, `_` and secret; `None`: another form.
pub(super) fn split_bearer<'a>(prefix: &str, text: &'a str) -> Option<(&'a str, &'a str)> {
    let (id, secret) = text.strip_prefix(prefix)?.split_once('_')?;
    let hex = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
    let well_formed = id.len() == 12 && id.bytes().all(hex) && secret.len() == 43 && secret.is_ascii();
    well_formed.then_some((id, secret))
}

/// A random id, and a secret of 256 random bits.
pub(super) fn random_bearer() -> Result<(String, Secret<String>), StoreError> {
    let mut random = [0u8; 38];
    ring::rand::SystemRandom::new().fill(&mut random).map_err(|_| StoreError::Random)?;
    let (id, secret) = random.split_at(6);
    Ok((sha256_hex(id).chars().take(12).collect(), Secret::new(URL_SAFE_NO_PAD.encode(secret))))
}

impl Tx {
    /// Creates a token; returns its id and its text, which is not stored.
    pub async fn add_token(&mut self, new: &NewToken, now_ms: i64) -> Result<(String, Secret<String>), StoreError> {
        let (id, secret) = random_bearer()?;
        let sql = "INSERT INTO token (id, hash, network, node, note, uses, max_uses, created_ms, expires_ms, key_proof)
            VALUES ($1, $2, $3, $4, $5, 0, $6, $7, $8, $9)";
        let values = [
            id.as_str().into(),
            sha256_hex(secret.reveal().as_bytes()).into(),
            new.network.as_str().into(),
            new.node.as_ref().map(NodeId::as_str).into(),
            new.note.clone().into(),
            i64::try_from(new.max_uses).unwrap_or(i64::MAX).into(),
            now_ms.into(),
            new.expires_ms.into(),
            new.key_proof.into(),
        ];
        self.run(sql, &values).await?;
        let text = Secret::new(format!("{PREFIX}{id}_{}", secret.reveal()));
        Ok((id, text))
    }

    /// Uses a token once for `node`. `None`: unknown, used up, expired, revoked or bound to another node; all of these
    /// look the same and take the same time.
    pub async fn redeem_token(
        &mut self,
        token: &str,
        node: &NodeId,
        now_ms: i64,
    ) -> Result<Option<ValidToken>, StoreError> {
        let Some(found) = self.valid_token(token, node, now_ms).await? else { return Ok(None) };
        let sql = "UPDATE token SET uses = uses + 1 WHERE id = $1 AND uses < max_uses";
        Ok((self.run(sql, &[found.id.as_str().into()]).await? == 1).then_some(found))
    }

    /// Whether [`Tx::redeem_token`] would succeed; uses nothing.
    pub async fn valid_token(
        &mut self,
        token: &str,
        node: &NodeId,
        now_ms: i64,
    ) -> Result<Option<ValidToken>, StoreError> {
        let Some(row) = self.matching_token(token).await? else { return Ok(None) };
        let found = Token::read(&row)?;
        if found.fault(node, now_ms).is_some() {
            return Ok(None);
        }
        let key_proof = row.opt_int("key_proof")? == Some(1);
        Ok(Some(ValidToken { id: found.id, network: found.network, bound: found.node.is_some(), key_proof }))
    }

    /// Why `token` does not enrol `node`, for operators: the token's id if it is one of ours, and the reason.
    pub async fn token_fault(
        &mut self,
        token: &str,
        node: &NodeId,
        now_ms: i64,
    ) -> Result<(Option<String>, String), StoreError> {
        let Some(row) = self.matching_token(token).await? else {
            return Ok((None, "unknown token: mistyped, or of another control plane".to_owned()));
        };
        let found = Token::read(&row)?;
        let fault = found.fault(node, now_ms);
        let fault = fault
            .unwrap_or_else(|| format!("token {} is of network {}, or not bound to the node", found.id, found.network));
        Ok((Some(found.id), fault))
    }

    async fn matching_token(&mut self, token: &str) -> Result<Option<Row>, StoreError> {
        let Some((id, secret)) = split_bearer(PREFIX, token) else { return Ok(None) };
        let row = self.row("SELECT * FROM token WHERE id = $1", &[id.into()]).await?;
        // Compared with a dummy for an unknown id, so that the time does not depend on it.
        let stored = row.as_ref().map_or_else(|| Ok("0".repeat(64)), |r| r.text("hash"))?;
        let same = constant_time_equal(stored.as_bytes(), sha256_hex(secret.as_bytes()).as_bytes());
        Ok(row.filter(|_| same))
    }

    /// Every token, newest first.
    pub async fn tokens(&mut self) -> Result<Vec<Token>, StoreError> {
        self.rows("SELECT * FROM token ORDER BY created_ms DESC, id", &[]).await?.iter().map(Token::read).collect()
    }

    /// Revokes a token. `false`: no such token, or it was revoked before.
    pub async fn revoke_token(&mut self, id: &str, now_ms: i64) -> Result<bool, StoreError> {
        let sql = "UPDATE token SET revoked_ms = $2 WHERE id = $1 AND revoked_ms IS NULL";
        Ok(self.run(sql, &[id.into(), now_ms.into()]).await? == 1)
    }

    /// Revokes every token bound to `node`; returns how many.
    pub async fn revoke_tokens_of(&mut self, node: &NodeId, now_ms: i64) -> Result<u64, StoreError> {
        let sql = "UPDATE token SET revoked_ms = $2 WHERE node = $1 AND revoked_ms IS NULL";
        self.run(sql, &[node.as_str().into(), now_ms.into()]).await
    }
}

/// Compares two digests; of equal length, so that the time discloses nothing.
pub(crate) fn constant_time_equal(a: &[u8], b: &[u8]) -> bool {
    #[expect(deprecated, reason = "the only constant-time comparison of slices in ring")]
    ring::constant_time::verify_slices_are_equal(a, b).is_ok()
}
