//! Fuzz target: `wg` files. Input is refused with its line, or unchanged by a round trip.
#![no_main]

use libfuzzer_sys::fuzz_target;
use spoke_api::agent::wgconf::{WgConf, parse};
use std::fmt::Write as _;

fn write(conf: &WgConf) -> String {
    let mut out = String::from("[Interface]\n");
    if let Some(key) = &conf.private_key {
        let _ = writeln!(out, "PrivateKey = {}", key.reveal_base64().as_str());
    }
    if let Some(port) = conf.listen_port {
        let _ = writeln!(out, "ListenPort = {port}");
    }
    if let Some(mark) = conf.fwmark {
        let _ = writeln!(out, "FwMark = {mark:#x}");
    }
    if let Some(mtu) = conf.mtu {
        let _ = writeln!(out, "MTU = {mtu}");
    }
    for address in &conf.addresses {
        let _ = writeln!(out, "Address = {address}");
    }
    for (key, peer) in &conf.peers {
        let _ = writeln!(out, "[Peer]\nPublicKey = {key}\nPersistentKeepalive = {}", peer.keepalive);
        if let Some(psk) = &peer.preshared_key {
            let _ = writeln!(out, "PresharedKey = {}", psk.reveal_base64().as_str());
        }
        for net in &peer.allowed_ips {
            let _ = writeln!(out, "AllowedIPs = {net}");
        }
        if let Some(at) = &peer.endpoint {
            let _ = writeln!(out, "Endpoint = {at}");
        }
    }
    out
}

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match parse(text) {
        Ok(conf) => {
            let hook = |l: &str| {
                let key = l.split('=').next().unwrap_or_default().trim().to_ascii_lowercase();
                l.contains('=') && ["preup", "postup", "predown", "postdown"].contains(&key.as_str())
            };
            assert!(!text.lines().map(|l| l.split('#').next().unwrap_or_default()).any(hook), "a hook was accepted");
            assert_eq!(parse(&write(&conf)), Ok(conf));
        }
        Err(bad) => assert!((1..=text.split('\n').count()).contains(&bad.line), "{bad}"),
    }
});
