//! Networks: the settings shared by the nodes of one tunnel network.
use super::error::StoreError;
use super::row::{Row, Value};
use super::sql::Tx;
use crate::ipam::{BadPool, Pool};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use spoke_config::fault::ConfigFaults;
use spoke_config::node::Role;
use spoke_config::policy::GrantsPolicy;
use spoke_model::interface_name::IfName;
use spoke_model::node_id::NodeId;
use spoke_model::wireguard::MTU_RANGE;
use std::net::IpAddr;

/// Who may be a peer of the hubs of a network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// Every enrolled node.
    #[default]
    Open,
    /// Every enrolled node whose id and key the contract grants.
    Nft,
}

/// Not a kind of access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a kind of access; write open or nft")]
pub struct BadAccess;

impl std::str::FromStr for Access {
    type Err = BadAccess;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "open" => Ok(Self::Open),
            "nft" => Ok(Self::Nft),
            _ => Err(BadAccess),
        }
    }
}

impl Access {
    /// As in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Nft => "nft",
        }
    }
}

/// A network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Network {
    /// Its name.
    pub name: String,
    /// IPv4 addresses of its nodes.
    #[schema(value_type = Option<String>)]
    pub pool4: Option<IpNet>,
    /// IPv6 addresses of its nodes.
    #[schema(value_type = Option<String>)]
    pub pool6: Option<IpNet>,
    /// Addresses never leased to a node.
    #[schema(value_type = Vec<String>)]
    pub reserved: Vec<IpAddr>,
    /// Resolvers inside the tunnel.
    #[schema(value_type = Vec<String>)]
    pub dns: Vec<IpAddr>,
    /// Kernel name of the interface on the nodes.
    #[schema(value_type = String)]
    pub interface: IfName,
    /// Bytes; null: the node chooses.
    pub mtu: Option<u32>,
    /// Seconds; 0 is off.
    pub keepalive: u16,
    /// Whether hubs forward from node to node.
    pub forwarding: bool,
    /// Whether an operator must approve each node.
    pub approval: bool,
    /// Who may be a peer.
    pub access: Access,
    /// How long the address of a removed node stays unused, in seconds.
    pub quarantine_secs: u64,
    /// The `[grants]` section for nodes without one of their own; keys in URLs are redacted.
    #[serde(serialize_with = "redacted")]
    #[schema(value_type = Option<Object>)]
    pub grants: Option<GrantsPolicy>,
}

fn redacted<S: serde::Serializer>(policy: &Option<GrantsPolicy>, s: S) -> Result<S::Ok, S::Error> {
    policy.as_ref().map(GrantsPolicy::shown).serialize(s)
}

/// Why a network is not valid.
#[derive(Debug, thiserror::Error)]
pub enum BadNetwork {
    /// The name.
    #[error("the name {0:?} is not 1 to 63 characters out of a-z 0-9 -")]
    Name(String),
    /// No pool.
    #[error("a network needs an IPv4 pool, an IPv6 pool, or both")]
    NoPool,
    /// A pool of the wrong family.
    #[error("{0} is not of the family its pool is for")]
    Family(IpNet),
    /// A pool.
    #[error(transparent)]
    Pool(#[from] BadPool),
    /// A reserved address is in neither pool.
    #[error("the reserved address {0} is in neither pool")]
    Reserved(IpAddr),
    /// A grants section that nodes would refuse.
    #[error("{0}")]
    Grants(ConfigFaults),
    /// Another value.
    #[error("{0}")]
    Value(&'static str),
}

impl Network {
    /// A network with default settings.
    pub fn new(name: &str, pool4: Option<IpNet>, pool6: Option<IpNet>, interface: IfName) -> Self {
        Self {
            name: name.to_owned(),
            pool4,
            pool6,
            reserved: Vec::new(),
            dns: Vec::new(),
            interface,
            mtu: None,
            keepalive: 25,
            forwarding: false,
            approval: false,
            access: Access::Open,
            quarantine_secs: 7 * 86_400,
            grants: None,
        }
    }

    /// Checks all settings.
    pub fn check(&self) -> Result<(), BadNetwork> {
        let letters = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if !(1..=63).contains(&self.name.len()) || !self.name.bytes().all(letters) {
            return Err(BadNetwork::Name(self.name.clone()));
        }
        match (self.pool4, self.pool6) {
            (None, None) => return Err(BadNetwork::NoPool),
            (Some(net @ IpNet::V6(_)), _) | (_, Some(net @ IpNet::V4(_))) => return Err(BadNetwork::Family(net)),
            (_, _) => {}
        }
        let pools = self.pools()?;
        if let Some(outside) = self.reserved.iter().find(|a| !pools.iter().any(|p| p.net().contains(*a))) {
            return Err(BadNetwork::Reserved(*outside));
        }
        if self.mtu.is_some_and(|m| !MTU_RANGE.contains(&m)) {
            return Err(BadNetwork::Value("mtu must be 576 to 65455"));
        }
        if self.quarantine_secs > 10 * 366 * 86_400 {
            return Err(BadNetwork::Value("quarantine must be at most ten years"));
        }
        if self.dns.len() > 8 || self.reserved.len() > 256 {
            return Err(BadNetwork::Value("at most 8 resolvers and 256 reserved addresses"));
        }
        for role in [Role::Hub, Role::Node] {
            self.grants.as_ref().map_or(Ok(()), |g| g.read(role).map(drop)).map_err(BadNetwork::Grants)?;
        }
        Ok(())
    }

    /// The pools, IPv4 first.
    pub fn pools(&self) -> Result<Vec<Pool>, BadPool> {
        let pool = |net: IpNet| {
            let reserved: Vec<IpAddr> = self.reserved.iter().copied().filter(|a| net.contains(a)).collect();
            Pool::new(net, &reserved)
        };
        self.pool4.into_iter().chain(self.pool6).map(pool).collect()
    }

    pub(super) fn read(row: &Row) -> Result<Self, StoreError> {
        let narrow = |n: u64, column| u16::try_from(n).map_err(|_| StoreError::Unreadable(column));
        Ok(Self {
            name: row.text("name")?,
            pool4: row.opt_parsed("pool4")?,
            pool6: row.opt_parsed("pool6")?,
            reserved: row.json("reserved")?,
            dns: row.json("dns")?,
            interface: row.parsed("interface")?,
            mtu: row.opt_int("mtu")?.and_then(|m| u32::try_from(m).ok()),
            keepalive: narrow(row.count("keepalive")?, "keepalive")?,
            forwarding: row.flag("forwarding")?,
            approval: row.flag("approval")?,
            access: row.parsed("access")?,
            quarantine_secs: row.count("quarantine_ms")? / 1000,
            grants: match row.opt_text("grants")? {
                Some(text) => Some(serde_json::from_str(&text).map_err(|_| StoreError::Unreadable("network.grants"))?),
                None => None,
            },
        })
    }

    fn values(&self) -> Vec<Value> {
        let json = |list: &[IpAddr]| serde_json::Value::from_iter(list.iter().map(ToString::to_string)).to_string();
        let quarantine_ms = i64::try_from(self.quarantine_secs.saturating_mul(1000)).unwrap_or(i64::MAX);
        vec![
            self.name.as_str().into(),
            self.pool4.map(|n| n.to_string()).into(),
            self.pool6.map(|n| n.to_string()).into(),
            json(&self.reserved).into(),
            json(&self.dns).into(),
            self.interface.as_str().into(),
            self.mtu.map(i64::from).into(),
            i64::from(self.keepalive).into(),
            self.forwarding.into(),
            self.approval.into(),
            self.access.as_str().into(),
            quarantine_ms.into(),
            self.grants.as_ref().and_then(|g| serde_json::to_string(g).ok()).into(),
        ]
    }
}

impl Tx {
    /// Adds a network.
    pub async fn add_network(&mut self, network: &Network, now_ms: i64) -> Result<(), StoreError> {
        let sql =
            "INSERT INTO network (name, pool4, pool6, reserved, dns, interface, mtu, keepalive, forwarding, approval,
            access, quarantine_ms, grants, created_ms)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)";
        let mut values = network.values();
        values.push(now_ms.into());
        self.run(sql, &values).await.map(drop)
    }

    /// Replaces the settings of a network, and raises the generation of each of its nodes. `false`: no such network.
    pub async fn put_network(&mut self, network: &Network) -> Result<bool, StoreError> {
        let sql = "UPDATE network SET pool4 = $2, pool6 = $3, reserved = $4, dns = $5, interface = $6, mtu = $7,
            keepalive = $8, forwarding = $9, approval = $10, access = $11, quarantine_ms = $12,
            grants = $13 WHERE name = $1";
        let known = self.run(sql, &network.values()).await? == 1;
        if known {
            self.raise_network_generations(&network.name).await?;
        }
        Ok(known)
    }

    /// A network by name.
    pub async fn network(&mut self, name: &str) -> Result<Option<Network>, StoreError> {
        self.row("SELECT * FROM network WHERE name = $1", &[name.into()]).await?.map(|r| Network::read(&r)).transpose()
    }

    /// Every network, by name.
    pub async fn networks(&mut self) -> Result<Vec<Network>, StoreError> {
        self.rows("SELECT * FROM network ORDER BY name", &[]).await?.iter().map(Network::read).collect()
    }

    /// Removes a network with everything that is of it. Its nodes must all be removed ones: their keys stay known.
    pub async fn delete_network(&mut self, name: &str) -> Result<(), StoreError> {
        for sql in [
            "UPDATE removed_identity SET generation =
                (SELECT n.generation FROM node n WHERE n.id = removed_identity.node AND n.network = $1)
                WHERE node IN (SELECT id FROM node WHERE network = $1)",
            "DELETE FROM report WHERE node IN (SELECT id FROM node WHERE network = $1)",
            "DELETE FROM registration WHERE node IN (SELECT id FROM node WHERE network = $1)",
            "DELETE FROM enrolment WHERE node IN (SELECT id FROM node WHERE network = $1)",
            "DELETE FROM superseded WHERE node IN (SELECT id FROM node WHERE network = $1)",
            "DELETE FROM takes_preshared WHERE node IN (SELECT id FROM node WHERE network = $1)",
            "DELETE FROM preshared WHERE node IN (SELECT id FROM node WHERE network = $1)
                OR hub IN (SELECT id FROM node WHERE network = $1)",
            "DELETE FROM admission WHERE node IN (SELECT id FROM node WHERE network = $1)",
            "DELETE FROM wanted_release WHERE network = $1",
            "DELETE FROM lease WHERE network = $1",
            "DELETE FROM token WHERE network = $1",
            "DELETE FROM node WHERE network = $1",
            "DELETE FROM network WHERE name = $1",
        ] {
            self.run(sql, &[name.into()]).await?;
        }
        Ok(())
    }

    /// The nodes and hubs of a network that are not removed, by id.
    pub async fn members(&mut self, name: &str) -> Result<Vec<NodeId>, StoreError> {
        let sql = "SELECT id FROM node WHERE network = $1 AND state <> 'removed' ORDER BY id";
        self.rows(sql, &[name.into()]).await?.iter().map(|r| r.parsed("id")).collect()
    }

    /// Locks all networks: no other transaction adds one or changes its pools before this one ends.
    pub async fn lock_networks(&mut self) -> Result<(), StoreError> {
        self.postgres_only("LOCK TABLE network IN SHARE ROW EXCLUSIVE MODE", &[]).await
    }

    /// Locks a network: no other transaction changes its members before this one ends.
    pub async fn lock_network(&mut self, name: &str) -> Result<(), StoreError> {
        self.postgres_only("SELECT 1 FROM network WHERE name = $1 FOR UPDATE", &[name.into()]).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_network_is_refused() {
        let net = |text: &str| Some(text.parse::<IpNet>().unwrap());
        let good = Network::new("field", net("10.8.0.0/16"), net("fd00:8::/64"), "wg0".parse().unwrap());
        assert!(good.check().is_ok());
        let error = |n: Network| n.check().unwrap_err().to_string();
        assert!(error(Network { name: "Field Net".into(), ..good.clone() }).contains("name"));
        assert!(error(Network { pool4: None, pool6: None, ..good.clone() }).contains("pool"));
        assert!(error(Network { pool4: net("fd00::/64"), ..good.clone() }).contains("family"));
        assert!(error(Network { pool4: net("10.8.0.1/16"), ..good.clone() }).contains("host bits"));
        assert!(error(Network { reserved: vec!["10.9.0.1".parse().unwrap()], ..good.clone() }).contains("neither"));
        assert!(error(Network { mtu: Some(100), ..good }).contains("mtu"));
    }
}
