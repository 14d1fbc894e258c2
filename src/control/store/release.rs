//! Releases: which one the images of a network shall run, and which one a single node of it, tried there first.
use super::node::Node;
use super::sql::{Row, StoreError, Tx};
use serde::Serialize;
use spoke_model::node_id::NodeId;
use spoke_model::release::WantedRelease;

/// A release wanted of a network or of one node in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Release {
    /// The network.
    pub network: String,
    /// The only node it is for; null: every node for which there is none of its own.
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
    /// Every wanted release, network by network, the network's own first.
    pub async fn releases(&mut self) -> Result<Vec<Release>, StoreError> {
        self.rows("SELECT * FROM wanted_release ORDER BY network, node", &[]).await?.iter().map(read).collect()
    }

    /// The release wanted of a node: its own, else its network's.
    pub async fn wanted_release(&mut self, node: &Node) -> Result<Option<WantedRelease>, StoreError> {
        // An empty node comes first, so the last row is the nearest.
        let sql = "SELECT * FROM wanted_release WHERE network = $1 AND (node = '' OR node = $2) ORDER BY node";
        let rows = self.rows(sql, &[node.network.as_str().into(), node.id.as_str().into()]).await?;
        let nearest = rows.last().map(read).transpose()?;
        Ok(nearest.map(|r| WantedRelease { version: r.version, source: r.source }))
    }

    /// Wants a release, in place of what was wanted there before; whom it concerns gets a new generation.
    pub async fn want_release(&mut self, release: &Release) -> Result<(), StoreError> {
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
        self.touch_concerned(&release.network, node).await
    }

    /// Wants nothing there any more; `false` if nothing was wanted.
    pub async fn unwant_release(&mut self, network: &str, node: Option<&NodeId>) -> Result<bool, StoreError> {
        let sql = "DELETE FROM wanted_release WHERE network = $1 AND node = $2";
        let there = self.run(sql, &[network.into(), key(node).into()]).await? == 1;
        if there {
            self.touch_concerned(network, node).await?;
        }
        Ok(there)
    }

    async fn touch_concerned(&mut self, network: &str, node: Option<&NodeId>) -> Result<(), StoreError> {
        match node {
            Some(node) => self.touch(node).await,
            None => self.touch_network(network).await,
        }
    }
}
