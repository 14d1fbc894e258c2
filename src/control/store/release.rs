//! Desired releases: of a network's images, or of a single node's image to try it first.
use super::error::StoreError;
use super::node::Node;
use super::row::Row;
use super::sql::Tx;
use serde::Serialize;
use spoke_model::node_id::NodeId;
use spoke_model::release::{Rollout, WantedRelease};

/// The desired release of a network or of one node in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Release {
    /// The network.
    pub network: String,
    /// The only node it is for; null: every node without a release of its own.
    #[schema(value_type = Option<String>)]
    pub node: Option<NodeId>,
    /// Version of the release, as its bundle has it.
    pub version: String,
    /// Where bundles are (`SOURCE/BOARD.spoke`); null: as each device is configured.
    pub source: Option<String>,
    /// Seconds over which the downloads of the nodes are spread, each at its own time; 0: all at once.
    pub spread_seconds: u32,
    /// When it was wanted, or retried last: the beginning of that time. Milliseconds since the epoch.
    pub since_ms: i64,
    /// When an operator last had it retried on nodes that gave it up, in milliseconds since the epoch; 0: never.
    pub renewed_ms: i64,
}

fn key(node: Option<&NodeId>) -> &str {
    node.map_or("", NodeId::as_str)
}

impl Release {
    pub(super) fn read(row: &Row) -> Result<Self, StoreError> {
        let node = row.text("node")?;
        Ok(Self {
            network: row.text("network")?,
            node: if node.is_empty() { None } else { Some(row.parsed("node")?) },
            version: row.text("version")?,
            source: row.opt_text("source")?,
            spread_seconds: u32::try_from(row.int("spread_seconds")?).unwrap_or_default(),
            since_ms: row.int("since_ms")?,
            renewed_ms: row.int("renewed_ms")?,
        })
    }
}

impl Tx {
    /// Every desired release, by network, the network's own first.
    pub async fn releases(&mut self) -> Result<Vec<Release>, StoreError> {
        self.rows("SELECT * FROM wanted_release ORDER BY network, node", &[]).await?.iter().map(Release::read).collect()
    }

    /// The desired release of a network, or of one node in it.
    pub async fn release(&mut self, network: &str, node: Option<&NodeId>) -> Result<Option<Release>, StoreError> {
        let sql = "SELECT * FROM wanted_release WHERE network = $1 AND node = $2";
        self.row(sql, &[network.into(), key(node).into()]).await?.as_ref().map(Release::read).transpose()
    }

    /// The desired release of a node, its own or its network's, and its part of the rollout.
    pub async fn release_of(&mut self, node: &Node) -> Result<Option<(WantedRelease, Rollout)>, StoreError> {
        // An empty node sorts first, so the last row is the most specific.
        let sql = "SELECT * FROM wanted_release WHERE network = $1 AND (node = '' OR node = $2) ORDER BY node";
        let rows = self.rows(sql, &[node.network.as_str().into(), node.id.as_str().into()]).await?;
        let release = rows.last().map(Release::read).transpose()?;
        Ok(release.map(|r| {
            let ms = |ms: i64| u64::try_from(ms).unwrap_or_default();
            let (since, spread) = (ms(r.since_ms) / 1000, u64::from(r.spread_seconds));
            let rollout = Rollout::of(&node.id, &r.version, since, spread, ms(r.renewed_ms));
            (WantedRelease { version: r.version, source: r.source, rollout: Rollout::default() }, rollout)
        }))
    }

    /// Sets the desired release of a network or node, and raises the generations of the nodes concerned.
    pub async fn put_release(&mut self, release: &Release) -> Result<(), StoreError> {
        // The same version again begins no new rollout.
        let sql = "INSERT INTO wanted_release (network, node, version, source, spread_seconds, since_ms, renewed_ms)
            VALUES ($1, $2, $3, $4, $5, $6, 0)
            ON CONFLICT (network, node) DO UPDATE SET source = excluded.source, spread_seconds = excluded.spread_seconds,
                since_ms = CASE WHEN wanted_release.version = excluded.version THEN wanted_release.since_ms
                    ELSE excluded.since_ms END,
                version = excluded.version";
        let node = release.node.as_ref();
        let values = [
            release.network.as_str().into(),
            key(node).into(),
            release.version.as_str().into(),
            release.source.clone().into(),
            i64::from(release.spread_seconds).into(),
            release.since_ms.into(),
        ];
        self.run(sql, &values).await?;
        self.raise_generations(&release.network, node).await
    }

    /// Has the nodes that gave the desired release up try it again, in a rollout that begins at `now_ms`. `false`: none is set.
    pub async fn renew_release(
        &mut self,
        network: &str,
        node: Option<&NodeId>,
        now_ms: i64,
    ) -> Result<bool, StoreError> {
        // Nodes compare it with the last one they saw, so it grows whatever the clock says.
        let sql = "UPDATE wanted_release SET since_ms = $3,
            renewed_ms = CASE WHEN renewed_ms < $3 THEN $3 ELSE renewed_ms + 1 END WHERE network = $1 AND node = $2";
        let renewed = self.run(sql, &[network.into(), key(node).into(), now_ms.into()]).await? == 1;
        if renewed {
            self.raise_generations(network, node).await?;
        }
        Ok(renewed)
    }

    /// Clears the desired release of a network or node. `false`: none was set.
    pub async fn delete_release(&mut self, network: &str, node: Option<&NodeId>) -> Result<bool, StoreError> {
        let sql = "DELETE FROM wanted_release WHERE network = $1 AND node = $2";
        let deleted = self.run(sql, &[network.into(), key(node).into()]).await? == 1;
        if deleted {
            self.raise_generations(network, node).await?;
        }
        Ok(deleted)
    }

    async fn raise_generations(&mut self, network: &str, node: Option<&NodeId>) -> Result<(), StoreError> {
        match node {
            Some(node) => self.raise_generation(node).await,
            None => self.raise_network_generations(network).await,
        }
    }
}
