//! Versions of what operators edit: by an `ETag` a client says which version it changes. Pure.
//!
//! The tag has a digest of each setting, so that a refusal can name the settings that differ without a history. Reports of
//! devices are no part of it.
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Serialize;
use std::collections::BTreeMap;

/// Bytes kept of the SHA-256 of one setting.
const DIGEST: usize = 6;

/// Its characters in base64.
const WIDTH: usize = DIGEST * 4 / 3;

/// The digests of an entity's settings, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Version(BTreeMap<&'static str, String>);

impl Version {
    /// With a setting.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: &impl Serialize) -> Self {
        // A setting that is no JSON has one value for all: it is never in the way of a change.
        let text = serde_json::to_string(value).unwrap_or_default();
        let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
        let kept = digest.as_ref().get(..DIGEST).unwrap_or_default();
        self.0.insert(name, URL_SAFE_NO_PAD.encode(kept));
        self
    }

    /// Its entity tag (RFC 9110, section 8.8.3), with the quotes.
    pub fn tag(&self) -> String {
        format!("\"{}\"", self.0.values().map(String::as_str).collect::<String>())
    }

    /// The settings that differ from the version with this tag; every one if the tag is of another kind.
    fn changed_since(&self, tag: &str) -> Vec<&'static str> {
        // A proxy that compresses weakens the tag: of settings it says the same.
        let digests = tag.trim_start_matches("W/").trim_matches('"');
        let same_form = digests.is_ascii() && digests.len() == self.0.len() * WIDTH;
        let then = |i: usize| digests.get(i * WIDTH..(i + 1) * WIDTH).filter(|_| same_form);
        self.0.iter().enumerate().filter(|(i, (_, now))| then(*i) != Some(now)).map(|(_, (name, _))| *name).collect()
    }
}

/// The condition of an `If-Match` header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IfMatch {
    /// `*`: the entity exists.
    Any,
    /// One of these tags, with their quotes.
    Tags(Vec<String>),
}

/// Not an `If-Match`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("If-Match must be * or the ETag of a response, with its quotes")]
pub struct BadIfMatch;

impl std::str::FromStr for IfMatch {
    type Err = BadIfMatch;
    fn from_str(text: &str) -> Result<Self, BadIfMatch> {
        if text.trim() == "*" {
            return Ok(Self::Any);
        }
        let tags: Vec<String> = text.split(',').map(|t| t.trim().to_owned()).collect();
        let is_tag = |t: &String| {
            t.strip_prefix("W/").unwrap_or(t).strip_prefix('"').and_then(|t| t.strip_suffix('"')).is_some()
        };
        if tags.iter().all(is_tag) { Ok(Self::Tags(tags)) } else { Err(BadIfMatch) }
    }
}

impl IfMatch {
    /// The settings that were changed since the version the client has; empty: the condition holds.
    pub fn changed(&self, now: &Version) -> Vec<&'static str> {
        let Self::Tags(tags) = self else { return Vec::new() };
        let mut differences = tags.iter().map(|t| now.changed_since(t));
        let first = differences.next().unwrap_or_default();
        if differences.any(|changed| changed.is_empty()) { Vec::new() } else { first }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(label: &str, mtu: Option<u32>) -> Version {
        Version::default().with("label", &label).with("mtu", &mtu).with("enabled", &true)
    }

    #[test]
    fn changed_settings_are_named() {
        let first = version("a", None);
        let read: IfMatch = first.tag().parse().unwrap();
        assert!(read.changed(&first).is_empty());
        assert_eq!(read.changed(&version("b", None)), ["label"]);
        assert_eq!(read.changed(&version("b", Some(0))), ["label", "mtu"], "0 is a value");
        assert!("*".parse::<IfMatch>().unwrap().changed(&first).is_empty());
        let either: IfMatch = format!("\"x\", {}", first.tag()).parse().unwrap();
        assert!(either.changed(&first).is_empty());
    }

    #[test]
    fn foreign_tags_match_nothing() {
        let first = version("a", None);
        for tag in ["\"\"", "\"x\"", "\"ü\"", &format!("\"{}\"", "A".repeat(24))] {
            let changed = tag.parse::<IfMatch>().unwrap().changed(&first);
            assert_eq!(changed, ["enabled", "label", "mtu"], "{tag}");
        }
        assert!(format!("W/{}", first.tag()).parse::<IfMatch>().unwrap().changed(&first).is_empty());
        for bad in ["", "x", "\"a", "\"a\",b", "\""] {
            assert!(bad.parse::<IfMatch>().is_err(), "{bad}");
        }
    }
}
