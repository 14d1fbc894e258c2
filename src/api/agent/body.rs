//! Request bodies and their validation. All faults are reported at once as 422 with `detail`, as existing clients expect.
use super::json;
use super::wgconf;
use super::wgconf::{HOOK_REMEDY, WgConf};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Serialize;
use serde_json::{Map, Value};
use spoke_change::edit::{DeviceValues, PeerValues};
use spoke_change::request::RepairRequest;
use spoke_config::interface::{MIN_MTU_V6, TABLE_MAIN};
use spoke_model::address::{IfAddress, Masked};
use spoke_model::key::{PresharedKey, PublicKey, SecretKey};
use spoke_model::nets::Nets;
use spoke_model::wireguard::MTU_RANGE;
use spoke_net::api_state::Table;
use std::fmt::Display;
use std::net::IpAddr;
use std::time::Duration;

/// Longest time to confirm, in seconds.
const MAX_CONFIRM: u64 = 3600;

/// An invalid field.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FieldFault {
    /// Kind, such as `missing` or `value_error`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Path to the field: `["body", "public_key"]`.
    pub loc: Vec<Value>,
    /// For people.
    pub msg: String,
    /// The value given; null for secrets.
    pub input: Value,
}

/// Why a body is refused.
#[derive(Clone, Debug, PartialEq)]
pub enum BadBody {
    /// Not JSON: 400.
    Malformed(String),
    /// Invalid fields: 422.
    Invalid(Vec<FieldFault>),
}

/// `POST …/peers`.
#[derive(Clone, Debug, PartialEq)]
pub struct NewPeer {
    /// Identity.
    pub public_key: PublicKey,
    /// Its values.
    pub values: PeerValues,
    /// What was taken otherwise than it was written.
    pub warnings: Vec<String>,
}

/// A body whose fields are taken one by one; faults accumulate.
struct Fields {
    values: Map<String, Value>,
    faults: Vec<FieldFault>,
    warnings: Vec<String>,
}

impl Fields {
    fn read(bytes: &[u8]) -> Result<Self, BadBody> {
        match json::parse(bytes).map_err(|e| BadBody::Malformed(format!("The body is not valid JSON: {e}")))? {
            Value::Object(values) => Ok(Self { values, faults: Vec::new(), warnings: Vec::new() }),
            other => Err(BadBody::Invalid(vec![FieldFault {
                kind: "model_type",
                loc: vec!["body".into()],
                msg: "Input should be an object".into(),
                input: other,
            }])),
        }
    }

    /// A body that may be left out.
    fn read_optional(bytes: &[u8]) -> Result<Self, BadBody> {
        if bytes.is_empty() {
            Ok(Self { values: Map::new(), faults: Vec::new(), warnings: Vec::new() })
        } else {
            Self::read(bytes)
        }
    }

    fn fault(&mut self, kind: &'static str, key: &str, msg: impl Display, input: Value) {
        self.faults.push(FieldFault { kind, loc: vec!["body".into(), key.into()], msg: msg.to_string(), input });
    }

    /// The value, unless it is absent or null.
    fn take(&mut self, key: &str) -> Option<Value> {
        self.values.remove(key).filter(|v| !v.is_null())
    }

    fn text(&mut self, key: &str, secret: bool) -> Option<String> {
        match self.take(key)? {
            Value::String(text) => Some(text),
            other => {
                self.fault("string_type", key, "Input should be a valid string", shown(other, secret));
                None
            }
        }
    }

    fn parsed<T: std::str::FromStr<Err: Display>>(&mut self, key: &str, secret: bool) -> Option<T> {
        let text = self.text(key, secret)?;
        match text.parse() {
            Ok(value) => Some(value),
            Err(e) => {
                self.fault("value_error", key, e, shown(text.into(), secret));
                None
            }
        }
    }

    fn required<T>(&mut self, key: &str, read: impl FnOnce(&mut Self, &str) -> Option<T>) -> Option<T> {
        let (there, before) = (self.values.get(key).is_some_and(|v| !v.is_null()), self.faults.len());
        let value = read(self, key);
        if value.is_none() && !there && self.faults.len() == before {
            self.fault("missing", key, "Field required", Value::Null);
        }
        value
    }

    fn number(&mut self, key: &str, max: u64) -> Option<u64> {
        let value = self.take(key)?;
        let n = value.as_u64().or_else(|| whole(&value)).filter(|n| *n <= max);
        if n.is_none() {
            let (kind, msg) = if value.as_f64().is_some_and(|f| f.fract() == 0.0) {
                ("less_than_equal", format!("Input should be from 0 to {max}"))
            } else {
                ("int_type", "Input should be a valid integer".to_owned())
            };
            self.fault(kind, key, msg, value);
        }
        n
    }

    fn nets(&mut self, key: &str) -> Option<Nets> {
        let items = match self.take(key)? {
            Value::Array(items) => items,
            other => {
                self.fault("list_type", key, "Input should be a valid list", other);
                return None;
            }
        };
        let mut out = Vec::new();
        for (i, item) in items.into_iter().enumerate() {
            match item.as_str().map(|t| t.parse::<Masked>().map_err(|e| format!("{t:?} {e}"))) {
                Some(Ok(net)) => {
                    if net.had_host_bits {
                        // Panels send the address of a pool with the pool's length; masked, each would take the whole pool.
                        self.warnings.push(format!("{key}[{i}] {item} is taken as the host {}", net.host));
                    }
                    out.push(if net.had_host_bits { net.host } else { net.net });
                }
                bad => {
                    let msg = match bad {
                        Some(Err(e)) => e,
                        Some(Ok(_)) | None => "Input should be a valid string".to_owned(),
                    };
                    let loc = vec!["body".into(), key.into(), i.into()];
                    self.faults.push(FieldFault { kind: "value_error", loc, msg, input: item });
                }
            }
        }
        Some(out.into_iter().collect())
    }

    fn confirm(&mut self) -> Option<Duration> {
        let seconds = self.number("confirm_within", MAX_CONFIRM)?;
        if seconds == 0 {
            self.fault("greater_than_equal", "confirm_within", "Input should be at least 1", 0.into());
        }
        Some(Duration::from_secs(seconds))
    }

    fn flag(&mut self, key: &str, default: bool) -> bool {
        match self.take(key) {
            None => default,
            Some(Value::Bool(b)) => b,
            Some(other) => {
                self.fault("bool_type", key, "Input should be a valid boolean", other);
                default
            }
        }
    }

    /// The value, unless a field was invalid.
    fn finish<T>(self, value: Option<T>) -> Result<T, BadBody> {
        match value {
            Some(value) if self.faults.is_empty() => Ok(value),
            _ => Err(BadBody::Invalid(self.faults)),
        }
    }
}

/// 25.0 is an integer to JSON Schema.
fn whole(value: &Value) -> Option<u64> {
    /// 2^53: floats below are exact.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let f = value.as_f64().filter(|f| f.fract() == 0.0 && (0.0..EXACT).contains(f))?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole and in range, checked above")]
    Some(f as u64)
}

fn shown(value: Value, secret: bool) -> Value {
    if secret { Value::Null } else { value }
}

fn keepalive(f: &mut Fields) -> Option<u16> {
    f.number("persistent_keepalive", 65_535).and_then(|n| u16::try_from(n).ok())
}

/// `POST …/peers`: `{public_key!, allowed_ips=[], preshared_key?, persistent_keepalive=0}`. An omitted preshared key stays.
pub fn new_peer(bytes: &[u8]) -> Result<(NewPeer, Option<Duration>), BadBody> {
    let mut f = Fields::read(bytes)?;
    let public_key = f.required("public_key", |f, k| f.parsed::<PublicKey>(k, false));
    let null_nets = f.values.get("allowed_ips").is_some_and(Value::is_null);
    if null_nets {
        f.fault("list_type", "allowed_ips", "Input should be a valid list", Value::Null);
    }
    let values = PeerValues {
        preshared_key: preshared(&mut f),
        allowed_ips: Some(f.nets("allowed_ips").unwrap_or_default()),
        keepalive: Some(keepalive(&mut f).unwrap_or(0)),
        endpoint: None,
    };
    let (confirm, warnings) = (f.confirm(), std::mem::take(&mut f.warnings));
    f.finish(public_key.map(|public_key| (NewPeer { public_key, values, warnings }, confirm)))
}

fn preshared(f: &mut Fields) -> Option<PresharedKey> {
    if f.values.get("preshared_key").is_some_and(|v| v == "") {
        f.values.remove("preshared_key");
    }
    f.parsed("preshared_key", true)
}

/// Values, and what was taken otherwise than it was written.
type Warned<T> = (T, Vec<String>);

/// `PUT …/peers/{key}`: `{allowed_ips?, persistent_keepalive?}`.
pub fn peer_values(bytes: &[u8]) -> Result<(Warned<PeerValues>, Option<Duration>), BadBody> {
    let mut f = Fields::read(bytes)?;
    let values = PeerValues {
        preshared_key: preshared(&mut f),
        allowed_ips: f.nets("allowed_ips"),
        keepalive: keepalive(&mut f),
        endpoint: None,
    };
    let (confirm, warnings) = (f.confirm(), std::mem::take(&mut f.warnings));
    f.finish(Some(((values, warnings), confirm)))
}

/// `POST …/syncconf`: `{"config": base64 of a file}`.
///
/// Each form of the file is dropped once the next is made, since thousands of peers take megabytes.
pub fn syncconf(bytes: impl AsRef<[u8]>) -> Result<(WgConf, Option<Duration>), BadBody> {
    let mut f = Fields::read(bytes.as_ref())?;
    drop(bytes);
    let text = f.required("config", |f, k| f.text(k, true));
    let confirm = f.confirm();
    let mut bad = |msg: String| {
        f.fault("value_error", "config", msg, Value::Null);
        None
    };
    let conf = text.and_then(|mut text| {
        text.retain(|c| !c.is_ascii_whitespace());
        let Ok(raw) = STANDARD.decode(&text) else { return bad("Input should be base64".into()) };
        drop(text);
        match wgconf::parse_bytes(&raw) {
            Ok(conf) => Some(conf),
            Err(e) => bad(format!("The file is invalid: {e}")),
        }
    });
    f.finish(conf.map(|c| (c, confirm)))
}

/// `PUT …/config`: `{private_key!, listen_port?, address?, post_up?, pre_down?, mtu?, dns?, table?, nested_allowed_ips?}`.
/// What is left out stays.
pub fn device(bytes: &[u8]) -> Result<(DeviceValues, Option<Duration>), BadBody> {
    let mut f = Fields::read(bytes)?;
    let private_key = f.required("private_key", |f, k| f.parsed::<SecretKey>(k, true));
    for hook in ["post_up", "pre_down", "pre_up", "post_down"] {
        if f.take(hook).is_some_and(|v| v.as_str().is_none_or(|v| !v.trim().is_empty())) {
            f.fault("value_error", hook, format_args!("A hook {HOOK_REMEDY}"), Value::Null);
        }
    }
    let listen_port = f.number("listen_port", 65_535).and_then(|n| u16::try_from(n).ok());
    let mtu = f.number("mtu", (*MTU_RANGE.end()).into()).and_then(|n| u32::try_from(n).ok());
    if let Some(small) = mtu.filter(|m| *m != 0 && m < MTU_RANGE.start()) {
        f.fault("greater_than_equal", "mtu", format!("Input should be {} or more", MTU_RANGE.start()), small.into());
    }
    let addresses = listed(&mut f, "address", |t| t.parse::<IfAddress>().map(|a| a.0).map_err(|e| e.to_string()));
    let v6 = addresses.iter().flatten().any(|a| a.addr().is_ipv6());
    if let Some(small) = mtu.filter(|m| *m != 0 && *m < MIN_MTU_V6 && v6) {
        f.fault("greater_than_equal", "mtu", "Input should be 1280 or more: IPv6 needs it", small.into());
    }
    let dns = listed(&mut f, "dns", dns);
    let table = table(&mut f);
    let nested_allowed_ips = f.values.get("nested_allowed_ips").is_some_and(|v| !v.is_null());
    let nested_allowed_ips = nested_allowed_ips.then(|| f.flag("nested_allowed_ips", false));
    let confirm = f.confirm();
    f.finish(private_key.map(|private_key| {
        let addresses = addresses.map(|list| list.into_iter().collect());
        let dns = dns.map(|list| {
            let servers = list.iter().filter_map(|d| d.as_ref().ok()).copied().collect();
            (servers, list.into_iter().filter_map(Result::err).collect())
        });
        (DeviceValues { private_key, listen_port, addresses, mtu, dns, table, nested_allowed_ips }, confirm)
    }))
}

/// A resolver, or a search domain, told apart as `wg-quick` does.
fn dns(text: &str) -> Result<Result<IpAddr, String>, String> {
    let label =
        |l: &str| (1..=63).contains(&l.len()) && l.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
    let is_domain = text.len() <= 253 && text.strip_suffix('.').unwrap_or(text).split('.').all(label);
    let is_address = text.contains(':') || text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    match text.parse() {
        Ok(address) => Ok(Ok(address)),
        Err(_) if is_domain && !is_address => Ok(Err(text.to_owned())),
        Err(_) => Err("is neither an IP address nor a search domain".to_owned()),
    }
}

/// A JSON list, or text separated by commas; `None` if it is absent.
fn listed<T>(f: &mut Fields, key: &str, read: impl Fn(&str) -> Result<T, String>) -> Option<Vec<T>> {
    let items: Vec<Value> = match f.take(key)? {
        Value::String(text) => text.split(',').map(str::trim).filter(|t| !t.is_empty()).map(Into::into).collect(),
        Value::Array(items) => items,
        other => {
            f.fault("string_type", key, "Input should be a valid string", other);
            return None;
        }
    };
    let mut out = Vec::new();
    for item in items {
        match item.as_str().map(&read) {
            Some(Ok(value)) => out.push(value),
            Some(Err(e)) => f.fault("value_error", key, format!("{item} {e}"), item.clone()),
            None => f.fault("string_type", key, "Input should be a valid string", item),
        }
    }
    Some(out)
}

fn table(f: &mut Fields) -> Option<Table> {
    let value = f.take("table")?;
    let number = value.as_u64().or_else(|| whole(&value)).or_else(|| value.as_str().and_then(|t| t.parse().ok()));
    match (value.as_str(), number.and_then(|n| u32::try_from(n).ok())) {
        (Some("" | "auto" | "main"), _) | (_, Some(TABLE_MAIN)) => Some(Table::Auto),
        (Some("off"), _) => Some(Table::Off),
        (_, Some(n)) if n != 0 => Some(Table::Number(n)),
        _ => {
            let msg = "Input should be \"auto\", \"main\", \"off\" or a table's number";
            f.fault("value_error", "table", msg, value);
            None
        }
    }
}

/// A call without fields of its own: `{}`, nothing, or `{"confirm_within": seconds}`.
pub fn bare(bytes: &[u8]) -> Result<Option<Duration>, BadBody> {
    let mut f = Fields::read_optional(bytes)?;
    let confirm = f.confirm();
    f.finish(Some(confirm))
}

/// `POST /v1/confirm`: `{"generation": n}`.
pub fn generation(bytes: &[u8]) -> Result<u64, BadBody> {
    let mut f = Fields::read(bytes)?;
    let generation = f.required("generation", |f, k| f.number(k, u64::MAX));
    f.finish(generation)
}

/// `POST /v1/rollback`: `{"generation"?: n}`.
pub fn rollback(bytes: &[u8]) -> Result<Option<u64>, BadBody> {
    let mut f = Fields::read_optional(bytes)?;
    let generation = f.number("generation", u64::MAX);
    f.finish(Some(generation))
}

/// `POST /v1/drift/reconcile`.
pub fn reconcile(bytes: &[u8]) -> Result<RepairRequest, BadBody> {
    let mut f = Fields::read_optional(bytes)?;
    let default = RepairRequest::default();
    let what = RepairRequest {
        reconcile_missing: f.flag("reconcile_missing", default.reconcile_missing),
        reconcile_mismatched: f.flag("reconcile_mismatched", default.reconcile_mismatched),
        remove_unknown: f.flag("remove_unknown", default.remove_unknown),
        dry_run: f.flag("dry_run", default.dry_run),
    };
    f.finish(Some(what))
}

#[cfg(test)]
mod tests;
