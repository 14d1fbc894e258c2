//! A change of a node's settings: its checks, and its effect. Pure.
use super::RegistryError;
use crate::store::node::{Node, OverrideName, Overrides};
use serde::Deserialize;
use spoke_model::wireguard::MTU_RANGE;

/// A change of a node's settings; absent leaves a value.
#[derive(Clone, Debug, Default, Deserialize, utoipa::ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct NodeChange {
    /// For people; empty removes it.
    pub label: Option<String>,
    /// Cut off from other nodes.
    pub isolated: Option<bool>,
    /// A disabled node stays enrolled and is a peer of no hub.
    pub enabled: Option<bool>,
    /// Replaces all overrides.
    pub overrides: Option<Overrides>,
    /// Sets these overrides; null leaves one.
    pub set_overrides: Overrides,
    /// Removes these overrides.
    pub unset_overrides: Vec<OverrideName>,
}

/// Checks a label.
pub fn check_label(label: Option<&str>) -> Result<(), RegistryError> {
    if label.is_some_and(|l| l.len() > 128 || l.chars().any(char::is_control)) {
        return Err(RegistryError::Value { field: "label", expected: "at most 128 printable characters" });
    }
    Ok(())
}

fn check_overrides(overrides: &Overrides) -> Result<(), RegistryError> {
    let bad = |field, expected| Err(RegistryError::Value { field, expected });
    if overrides.override_mtu.is_some_and(|m| m != 0 && !MTU_RANGE.contains(&m)) {
        return bad("override_mtu", "0 or 576 to 65455");
    }
    if overrides.override_dns.as_ref().is_some_and(|d| d.len() > 8) {
        return bad("override_dns", "at most 8 addresses");
    }
    let nets = overrides.override_endpoint_allowed_ip.as_deref().unwrap_or_default();
    let distinct: std::collections::BTreeSet<_> = nets.iter().collect();
    if nets.len() > 64 || distinct.len() < nets.len() || nets.iter().any(|n| n.trunc() != *n) {
        return bad("override_endpoint_allowed_ip", "at most 64 different networks without host bits");
    }
    Ok(())
}

impl NodeChange {
    /// Checks every value.
    pub fn check(&self) -> Result<(), RegistryError> {
        let bad = |field, expected| Err(RegistryError::Value { field, expected });
        check_label(self.label.as_deref())?;
        if self.unset_overrides.iter().any(|name| self.set_overrides.has(*name)) {
            return bad("unset_overrides", "other overrides than those set");
        }
        self.overrides.as_ref().map_or(Ok(()), check_overrides)?;
        check_overrides(&self.set_overrides)
    }

    /// The node with this change.
    pub fn apply(&self, before: &Node) -> Node {
        let mut node = before.clone();
        if let Some(label) = &self.label {
            node.label = Some(label.clone()).filter(|l| !l.is_empty());
        }
        node.isolated = self.isolated.unwrap_or(node.isolated);
        node.enabled = self.enabled.unwrap_or(node.enabled);
        let replaced = self.overrides.clone().unwrap_or(node.overrides);
        node.overrides = self.set_overrides.clone().over(replaced);
        self.unset_overrides.iter().for_each(|name| node.overrides.unset(*name));
        node
    }
}
