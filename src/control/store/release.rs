//! Desired releases: of a network's images, or of a single node's image to try it first.
use super::error::StoreError;
use super::node::Node;
use super::row::Row;
use super::sql::Tx;
use serde::Serialize;
use spoke_model::node_id::NodeId;
use spoke_model::release::WantedRelease;

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
}

fn key(node: Option<&NodeId>) -> &str {
    node.map_or("", NodeId::as_str)
}

fn read(row: &Row) -> Result<Release, StoreError> {
    let node = row.text("node")?;
    Ok(Release {
        network: row.text("network")?,
        node: if node.is_empty() { None } else { Some(row.parsed("node")?) },
        version: row.text("version")?,
        source: row.opt_text("source")?,
    })
}

impl Tx {
    /// Every desired release, by network, the network's own first.
    pub async fn releases(&mut self) -> Result<Vec<Release>, StoreError> {
        self.rows("SELECT * FROM wanted_release ORDER BY network, node", &[]).await?.iter().map(read).collect()
    }

    /// The desired release of a node: its own, else its network's.
    pub async fn release_of(&mut self, node: &Node) -> Result<Option<WantedRelease>, StoreError> {
        // An empty node sorts first, so the last row is the most specific.
        let sql = "SELECT * FROM wanted_release WHERE network = $1 AND (node = '' OR node = $2) ORDER BY node";
        let rows = self.rows(sql, &[node.network.as_str().into(), node.id.as_str().into()]).await?;
        let release = rows.last().map(read).transpose()?;
        Ok(release.map(|r| WantedRelease { version: r.version, source: r.source }))
    }

    /// Sets the desired release of a network or node, and raises the generations of the nodes concerned.
    pub async fn put_release(&mut self, release: &Release) -> Result<(), StoreError> {
        let sql = "INSERT INTO wanted_release (network, node, version, source) VALUES ($1, $2, $3, $4)
            ON CONFLICT (network, node) DO UPDATE SET version = excluded.version, source = excluded.source";
        let node = release.node.as_ref();
        let values = [
            release.network.as_str().into(),
            key(node).into(),
            release.version.as_str().into(),
            release.source.clone().into(),
        ];
        self.run(sql, &values).await?;
        self.raise_generations(&release.network, node).await
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
