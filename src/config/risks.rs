//! What a configuration may say, and what it risks: shown by `spoke check`, refused by nothing.
use super::Config;
use super::grants::{Endpoint, Finality, Grants, Url};
use std::net::IpAddr;

impl Config {
    /// One line for each risk: the key, what may happen, and how to avoid it.
    pub fn risks(&self) -> Vec<String> {
        self.grants.as_ref().map_or_else(Vec::new, of_grants)
    }
}

fn of_grants(grants: &Grants) -> Vec<String> {
    let urls = grants.endpoints.iter().enumerate().filter_map(|(i, endpoint)| match endpoint {
        Endpoint::Url(url) => Some((i, url)),
        Endpoint::Kept(_) => None,
    });
    let mut out: Vec<String> = urls
        .filter(|(_, url)| is_remote_and_plain(url))
        .map(|(i, url)| {
            format!(
                "grants.endpoints[{i}]: {} is not encrypted: every host on the path to it can admit and remove peers; use https://",
                url.shown()
            )
        })
        .collect();
    if grants.quorum < 2 && grants.finality == Finality::Latest {
        out.push(
            "grants.quorum: a single endpoint decides, by blocks that may be reverted (finality = \"latest\"): it can admit any peer; \
             set quorum = 2 with three endpoints, or finality = \"safe\""
                .to_owned(),
        );
    }
    out
}

/// By `http` to another machine.
fn is_remote_and_plain(url: &Url) -> bool {
    let Some(host) = url.shown().strip_prefix("http://") else { return false };
    let host = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.split(':').next().unwrap_or(host),
    };
    let local = host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    !local
}

#[cfg(test)]
mod tests {
    use super::*;

    fn risks(endpoints: &str, more: &str) -> Vec<String> {
        let text = format!(
            "[[interface]]\nname = \"wg0\"\n[grants]\ncontract = \"0x37d2106bADB01dd5bE1926e45D172Cb4203C4186\"\nchain_id = 8453\nendpoints = [{endpoints}]\n{more}"
        );
        Config::from_text(Some(("x", &text)), []).unwrap().risks()
    }

    #[test]
    fn plain_remote_endpoint_is_a_risk() {
        for remote in ["http://rpc.example.net/v2/KEY", "HTTP://192.0.2.1:8545", "http://[2001:db8::1]:8545"] {
            let found = risks(&format!("\"{remote}\""), "");
            assert!(found.len() == 1 && found[0].contains("endpoints[0]") && found[0].contains("https"), "{found:?}");
            assert!(!found[0].contains("KEY"), "{found:?}");
        }
        for local in ["http://127.0.0.1:8545", "http://[::1]:8545", "http://localhost:8545", "https://rpc.example.net"]
        {
            assert_eq!(risks(&format!("\"{local}\""), ""), [""; 0], "{local}");
        }
    }

    #[test]
    fn single_endpoint_at_the_newest_block_is_a_risk() {
        let (one, three) = (
            "\"https://a.example.net\"",
            "\"https://a.example.net\", \"https://b.example.net\", \"https://c.example.net\"",
        );
        assert!(risks(one, "finality = \"latest\"")[0].contains("quorum"));
        assert!(risks(one, "").is_empty());
        assert!(risks(three, "quorum = 2\nfinality = \"latest\"").is_empty());
    }
}
