//! Leases: which node has which address, until it is removed and a quarantine has passed.
use super::error::StoreError;
use super::network::Network;
use super::sql::Tx;
use crate::ipam::{Pool, Search};
use ipnet::IpNet;
use serde::Serialize;
use spoke_config::node::Role;
use spoke_model::node_id::NodeId;
use std::net::IpAddr;

/// Why a node got no address.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// Every address is leased or in quarantine.
    #[error("no address is free in {net}: {usable} are usable and all are leased or in quarantine")]
    Exhausted {
        /// The pool.
        net: IpNet,
        /// Its usable addresses.
        usable: u64,
    },
    /// The stored network is not valid.
    #[error(transparent)]
    Pool(#[from] crate::ipam::BadPool),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The use of a pool.
#[derive(Clone, Debug, PartialEq, Serialize, utoipa::ToSchema)]
pub struct PoolStats {
    /// Hosts of the pool.
    pub total_addresses: u64,
    /// Of these, never leased to a node.
    pub reserved_addresses: u64,
    /// Leased or in quarantine.
    pub allocated_addresses: u64,
    /// Free.
    pub available_addresses: u64,
    /// Allocated of usable.
    pub utilization_percent: f64,
}

const fn family(net: IpNet) -> i64 {
    match net {
        IpNet::V4(_) => 4,
        IpNet::V6(_) => 6,
    }
}

fn as_i64(index: u64) -> Result<i64, StoreError> {
    i64::try_from(index).map_err(|_| StoreError::Unreadable("host"))
}

impl Tx {
    /// Leases `node` an address of each pool: the one it had before, else the free one nearest to what `number` prefers.
    ///
    /// The caller must hold the network's lock ([`Tx::lock_network`]).
    pub async fn lease(
        &mut self,
        network: &Network,
        node: &NodeId,
        number: u64,
        now_ms: i64,
    ) -> Result<Vec<IpNet>, LeaseError> {
        let sql = "DELETE FROM lease WHERE network = $1 AND until_ms <= $2";
        self.run(sql, &[network.name.as_str().into(), now_ms.into()]).await?;
        let mut addresses = Vec::new();
        for pool in network.pools()? {
            let index = match self.own_lease(network, &pool, node).await? {
                Some(index) => index,
                None => self.new_lease(network, &pool, node, number).await?,
            };
            let address = pool.host(index).ok_or(StoreError::Unreadable("lease.host"))?;
            addresses.push(with_prefix(address, pool.net()));
        }
        Ok(addresses)
    }

    async fn own_lease(&mut self, network: &Network, pool: &Pool, node: &NodeId) -> Result<Option<u64>, StoreError> {
        let sql = "UPDATE lease SET until_ms = NULL WHERE network = $1 AND family = $2 AND node = $3 RETURNING host";
        let values = [network.name.as_str().into(), family(pool.net()).into(), node.as_str().into()];
        let Some(row) = self.row(sql, &values).await? else { return Ok(None) };
        row.count("host").map(Some)
    }

    async fn new_lease(
        &mut self,
        network: &Network,
        pool: &Pool,
        node: &NodeId,
        number: u64,
    ) -> Result<u64, LeaseError> {
        // A node that joins from another network gives up its lease there.
        let sql = "DELETE FROM lease WHERE node = $1 AND family = $2 AND network <> $3";
        self.run(sql, &[node.as_str().into(), family(pool.net()).into(), network.name.as_str().into()]).await?;
        let mut search = pool.search(pool.preference(number));
        let index = loop {
            match search.next {
                Search::Found(index) => break index,
                Search::Exhausted => return Err(LeaseError::Exhausted { net: pool.net(), usable: pool.usable() }),
                Search::Probe(at) => {
                    let end = self.run_end(network, pool, at).await?;
                    search.answer(pool, end);
                }
            }
        };
        let sql = "INSERT INTO lease (network, family, host, node) VALUES ($1, $2, $3, $4)";
        let values =
            [network.name.as_str().into(), family(pool.net()).into(), as_i64(index)?.into(), node.as_str().into()];
        self.run(sql, &values).await?;
        Ok(index)
    }

    /// The first index at or after `from` that is not leased.
    ///
    /// Reads batches in key order and compares here: one walk along the primary key under any query plan.
    async fn run_end(&mut self, network: &Network, pool: &Pool, from: u64) -> Result<u64, StoreError> {
        const BATCH: i64 = 256;
        let sql = "SELECT host FROM lease WHERE network = $1 AND family = $2 AND host >= $3 ORDER BY host LIMIT $4";
        let mut end = from;
        loop {
            let values = [network.name.as_str().into(), family(pool.net()).into(), as_i64(end)?.into(), BATCH.into()];
            let rows = self.rows(sql, &values).await?;
            for row in &rows {
                if row.count("host")? != end {
                    return Ok(end);
                }
                end += 1;
            }
            if rows.len() < BATCH.unsigned_abs() as usize {
                return Ok(end);
            }
        }
    }

    /// Leases one address to a hub, which may have a reserved one. `false`: another node has it, or it is in no pool.
    pub async fn lease_address(
        &mut self,
        network: &Network,
        node: &NodeId,
        address: IpAddr,
    ) -> Result<bool, LeaseError> {
        for pool in network.pools()? {
            let Some(index) = pool.index(address) else { continue };
            let key = [network.name.as_str().into(), family(pool.net()).into(), as_i64(index)?.into()];
            let sql = "SELECT node FROM lease WHERE network = $1 AND family = $2 AND host = $3";
            if let Some(row) = self.row(sql, &key).await? {
                return Ok(row.opt_text("node")?.as_deref() == Some(node.as_str()));
            }
            // A lease left from before is in quarantine at most.
            let sql = "DELETE FROM lease WHERE node = $1 AND family = $2";
            self.run(sql, &[node.as_str().into(), family(pool.net()).into()]).await?;
            let sql = "INSERT INTO lease (network, family, host, node) VALUES ($1, $2, $3, $4)";
            let [network, family, host] = key;
            self.run(sql, &[network, family, host, node.as_str().into()]).await?;
            return Ok(true);
        }
        Ok(false)
    }

    /// Ends the leases of a node; they stay reserved for it during the quarantine.
    pub async fn end_leases(&mut self, network: &Network, node: &NodeId, now_ms: i64) -> Result<(), StoreError> {
        let quarantine = i64::try_from(network.quarantine_secs.saturating_mul(1000)).unwrap_or(i64::MAX);
        let until = now_ms.saturating_add(quarantine);
        let sql = "UPDATE lease SET until_ms = $2 WHERE node = $1";
        self.run(sql, &[node.as_str().into(), until.into()]).await.map(drop)
    }

    /// Moves the leases of a network to changed pools, so that every node keeps its address. Addresses in quarantine that no
    /// new pool holds are dropped.
    ///
    /// Returns the node whose address no new pool holds, if any: the transaction must then be dropped.
    pub async fn move_leases(&mut self, before: &Network, after: &Network) -> Result<Option<String>, LeaseError> {
        let (old, new) = (before.pools()?, after.pools()?);
        let find = |pools: &[Pool], of| pools.iter().find(|p| family(p.net()) == of).cloned();
        let sql = "SELECT l.family, l.host, l.node, l.until_ms, n.role FROM lease l LEFT JOIN node n ON n.id = l.node
            WHERE l.network = $1";
        let name = after.name.as_str();
        let mut moved = Vec::new();
        for row in self.rows(sql, &[name.into()]).await? {
            let (of, host, until) = (row.int("family")?, row.count("host")?, row.opt_int("until_ms")?);
            let node = row.opt_text("node")?.unwrap_or_default();
            // Only a hub may have a reserved address.
            let is_hub = row.opt_parsed::<Role>("role")? == Some(Role::Hub);
            let address = find(&old, of).and_then(|p| p.host(host));
            let place = address.and_then(|a| {
                let pool = find(&new, of)?;
                pool.index(a).filter(|i| is_hub || pool.address(*i).is_some())
            });
            match (place, until) {
                (Some(index), _) if index == host => {}
                (None, None) => return Ok(Some(node)),
                (_, _) => moved.push((of, host, place, node, until)),
            }
        }
        // Deleted before inserted, because an index may move to where another was.
        for (of, host, ..) in &moved {
            let sql = "DELETE FROM lease WHERE network = $1 AND family = $2 AND host = $3";
            self.run(sql, &[name.into(), (*of).into(), as_i64(*host)?.into()]).await?;
        }
        for (of, _, place, node, until) in moved {
            let Some(place) = place else { continue };
            let sql = "INSERT INTO lease (network, family, host, node, until_ms) VALUES ($1, $2, $3, $4, $5)";
            self.run(sql, &[name.into(), of.into(), as_i64(place)?.into(), node.into(), until.into()]).await?;
        }
        Ok(None)
    }

    /// The addresses of a node with its pools' prefix length, IPv4 first.
    pub async fn addresses(&mut self, network: &Network, node: &NodeId) -> Result<Vec<IpNet>, LeaseError> {
        let sql =
            "SELECT family, host FROM lease WHERE network = $1 AND node = $2 AND until_ms IS NULL ORDER BY family";
        let mut addresses = Vec::new();
        for row in self.rows(sql, &[network.name.as_str().into(), node.as_str().into()]).await? {
            let (of, host) = (row.int("family")?, row.count("host")?);
            addresses.extend(network.address_of(of, host)?);
        }
        Ok(addresses)
    }

    /// The use of a network's first pool.
    pub async fn pool_stats(&mut self, network: &Network) -> Result<PoolStats, LeaseError> {
        let pools = network.pools()?;
        let pool = pools.first().ok_or(StoreError::Unreadable("network.pool4"))?;
        let sql = "SELECT COUNT(*) AS n FROM lease WHERE network = $1 AND family = $2";
        let row = self.row(sql, &[network.name.as_str().into(), family(pool.net()).into()]).await?;
        let mut allocated = row.map_or(Ok(0), |r| r.count("n"))?;
        // A hub at a reserved address does not reduce what nodes can get.
        for host in pool.reserved() {
            let sql = "SELECT 1 AS one FROM lease WHERE network = $1 AND family = $2 AND host = $3";
            let values = [network.name.as_str().into(), family(pool.net()).into(), as_i64(*host)?.into()];
            allocated -= u64::from(self.row(sql, &values).await?.is_some());
        }
        let usable = pool.usable();
        #[expect(clippy::cast_precision_loss, reason = "a percentage for display")]
        let percent = (allocated as f64 / usable as f64 * 10_000.0).round() / 100.0;
        Ok(PoolStats {
            total_addresses: pool.hosts(),
            reserved_addresses: pool.reserved().len() as u64,
            allocated_addresses: allocated,
            available_addresses: usable.saturating_sub(allocated),
            utilization_percent: percent,
        })
    }
}

impl Network {
    /// The host of a stored lease; `None`: no pool holds it.
    pub(crate) fn address_of(&self, of: i64, host: u64) -> Result<Option<IpNet>, LeaseError> {
        let pools = self.pools()?;
        let pool = pools.iter().find(|p| family(p.net()) == of);
        Ok(pool.and_then(|p| Some(with_prefix(p.host(host)?, p.net()))))
    }
}

fn with_prefix(address: IpAddr, net: IpNet) -> IpNet {
    IpNet::new(address, net.prefix_len()).unwrap_or_else(|_| address.into())
}
