//! Preshared keys of the tunnels between nodes and hubs. A row says that the tunnel of one key of a node and one hub has one, and
//! holds the salt that the key is derived from; the key itself is never stored.
//!
//! A tunnel gets its key when it begins, with an enrolment or the announcement of a new WireGuard key, and keeps it: at no time
//! do its ends have different ones. The salt is deleted with the WireGuard key, and the preshared key is lost with it.
use super::error::StoreError;
use super::node::Node;
use super::sql::Tx;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use ring::rand::SecureRandom as _;
use spoke_config::node::Role;
use spoke_enroll::document::{SentPresharedKey, StateDocument, WantedPair};
use spoke_model::key::{PresharedKey, PublicKey};
use spoke_model::node_id::NodeId;
use std::collections::BTreeMap;

/// Derives the preshared key of a salt, the key of a node and the key of a hub.
pub trait DerivePreshared {
    /// The same for the same values, at every control plane of the fleet.
    fn preshared_key(&self, salt: &[u8], node: PublicKey, hub: PublicKey) -> PresharedKey;
}

fn salt() -> Result<String, StoreError> {
    let mut bytes = [0; 32];
    ring::rand::SystemRandom::new().fill(&mut bytes).map_err(|_| StoreError::Random)?;
    Ok(STANDARD.encode(bytes))
}

impl Tx {
    /// Notes whether a node takes preshared keys. If it does so no longer, such as after a downgrade, its tunnels lose theirs.
    /// Whether any did.
    pub async fn note_preshared(&mut self, id: &NodeId, takes: bool) -> Result<bool, StoreError> {
        if takes {
            let sql =
                "INSERT INTO takes_preshared (node) SELECT id FROM node WHERE id = $1 ON CONFLICT (node) DO NOTHING";
            self.run(sql, &[id.as_str().into()]).await?;
            return Ok(false);
        }
        if self.run("DELETE FROM takes_preshared WHERE node = $1", &[id.as_str().into()]).await? == 0 {
            return Ok(false);
        }
        let Some(node) = self.locked_node(id).await? else { return Ok(false) };
        if self.run("DELETE FROM preshared WHERE node = $1 OR hub = $1", &[id.as_str().into()]).await? == 0 {
            return Ok(false);
        }
        match node.role {
            Role::Node => {
                self.raise_generation(id).await?;
                self.raise_hub_generations(&node.network).await?;
            }
            Role::Hub => self.raise_network_generations(&node.network).await?,
        }
        Ok(true)
    }

    /// Preshared keys for the tunnels that begin with `key` of a node: to each hub, where both take them.
    pub async fn begin_preshared(&mut self, node: &Node, key: PublicKey) -> Result<(), StoreError> {
        let sql = "INSERT INTO preshared (node, node_key, hub, salt)
            SELECT $1, $2, h.id, $3 FROM node h JOIN takes_preshared t ON t.node = h.id
            WHERE h.network = $4 AND h.role = 'hub' AND h.state = 'active'
            AND EXISTS (SELECT 1 FROM takes_preshared WHERE node = $1)
            ON CONFLICT (node_key, hub) DO NOTHING";
        let values = [node.id.as_str().into(), key.to_string().into(), salt()?.into(), node.network.as_str().into()];
        self.run(sql, &values).await.map(drop)
    }

    /// Preshared keys for the tunnels of every node of the network to a hub that begins, where both take them.
    pub async fn begin_preshared_of_hub(&mut self, hub: &Node) -> Result<(), StoreError> {
        let sql = "INSERT INTO preshared (node, node_key, hub, salt)
            SELECT k.id, k.node_key, $1, $2
            FROM (SELECT id, wireguard_key AS node_key FROM node WHERE network = $3 AND role = 'node' AND state = 'active'
                UNION ALL SELECT id, next_key FROM node WHERE network = $3 AND role = 'node' AND state = 'active') k
            JOIN takes_preshared t ON t.node = k.id
            WHERE k.node_key IS NOT NULL AND EXISTS (SELECT 1 FROM takes_preshared WHERE node = $1)
            ON CONFLICT (node_key, hub) DO NOTHING";
        let values = [hub.id.as_str().into(), salt()?.into(), hub.network.as_str().into()];
        self.run(sql, &values).await.map(drop)
    }

    /// Deletes the salts of all keys of a node but those it has.
    pub async fn retire_preshared(&mut self, node: &Node) -> Result<(), StoreError> {
        let sql = "DELETE FROM preshared WHERE node = $1 AND node_key <> $2 AND node_key <> $3";
        let text = |key: Option<PublicKey>| key.map_or_else(String::new, |k| k.to_string());
        let values = [node.id.as_str().into(), text(node.wireguard_key).into(), text(node.next_key).into()];
        self.run(sql, &values).await.map(drop)
    }

    /// Whether a tunnel of this key of a node has a preshared key.
    pub async fn has_preshared(&mut self, key: PublicKey) -> Result<bool, StoreError> {
        let sql = "SELECT hub FROM preshared WHERE node_key = $1 LIMIT 1";
        Ok(self.row(sql, &[key.to_string().into()]).await?.is_some())
    }

    /// Adds its preshared keys to the document of a node.
    pub async fn add_preshared(
        &mut self,
        document: &mut StateDocument,
        secret: &impl DerivePreshared,
    ) -> Result<(), StoreError> {
        let own = document.node_id.clone();
        let Some(interface) = document.interfaces.first_mut() else { return Ok(()) };
        let unreadable = || StoreError::Unreadable("preshared.salt");
        match document.role {
            Role::Node => {
                let sql = "SELECT node_key, hub, salt FROM preshared WHERE node = $1 ORDER BY node_key";
                for row in self.rows(sql, &[own.as_str().into()]).await? {
                    let (public_key, id): (PublicKey, NodeId) = (row.parsed("node_key")?, row.parsed("hub")?);
                    let salt = STANDARD.decode(row.text("salt")?).map_err(|_| unreadable())?;
                    for hub in interface.hubs.iter_mut().filter(|h| h.node_id == id) {
                        let key = secret.preshared_key(&salt, public_key, hub.public_key);
                        hub.preshared_keys.push(WantedPair { public_key, preshared_key: SentPresharedKey(key) });
                    }
                }
            }
            Role::Hub => {
                let Some(hub_key) = self.node(&own).await?.and_then(|n| n.wireguard_key) else { return Ok(()) };
                let mut salts = BTreeMap::new();
                for row in
                    self.rows("SELECT node_key, salt FROM preshared WHERE hub = $1", &[own.as_str().into()]).await?
                {
                    let salt = STANDARD.decode(row.text("salt")?).map_err(|_| unreadable())?;
                    salts.insert(row.parsed::<PublicKey>("node_key")?, salt);
                }
                for peer in &mut interface.peers {
                    let salt = salts.get(&peer.public_key);
                    let key = salt.map(|salt| secret.preshared_key(salt, peer.public_key, hub_key));
                    peer.preshared_key = key.map(SentPresharedKey);
                }
            }
        }
        Ok(())
    }
}
