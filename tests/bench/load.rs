//! A full admission table and a response with ten thousand events, for benchmarks and limits.

use alloy_primitives::Address;
use spoke_config::grants::Grants;
use spoke_grants::admission::AdmissionTable;
use spoke_grants::cache::Cache;
use spoke_grants::jsonrpc::Call;
use spoke_grants::policy::Pair;
use spoke_grants::policy::{Decision, Reason};
use spoke_model::key::PublicKey;
use spoke_model::time::Boot;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::hash::RandomState;

/// A pair of node and key by number.
pub(crate) fn candidate(n: usize) -> Pair {
    let mut key = [0xa5; 32];
    key[..8].copy_from_slice(&(n as u64).to_be_bytes());
    (format!("node-{n}").parse().expect("a node id"), PublicKey(key))
}

/// A table in which the first `n` pairs are granted, confirmed by the chain at 1 s.
pub(crate) fn full_table(settings: &Grants, n: usize) -> (AdmissionTable<RandomState>, Vec<Pair>) {
    let granted = Decision { reason: Reason::AccessGranted, token_id: None, owner: None };
    let pairs: Vec<Pair> = (0..n).map(candidate).collect();
    let now = Boot::from_secs(1);
    let mut table = AdmissionTable::new(settings, Cache::new(RandomState::new()), now);
    table.set_candidates(&pairs.iter().cloned().collect::<BTreeSet<_>>());
    for begun in table.begin(pairs.clone()) {
        table.settle_final(begun, Some(granted), Some(granted), 1, now);
    }
    table.confirm(now);
    (table, pairs)
}

/// The call for events, and a response with ten thousand of them in a provider's format.
pub(crate) fn events() -> (Call, String) {
    let contract: Address = "0x37d2106badb01dd5be1926e45d172cb4203c4186".parse().expect("an address");
    let word = |n: u64| format!("0x{n:064x}");
    let mut text = String::from("[{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":[");
    for n in 0..10_000u64 {
        let comma = if n == 0 { "" } else { "," };
        let name = format!("{:0<64}", alloy_primitives::hex::encode(format!("node-{n}")));
        let length = format!("node-{n}").len();
        let data = format!("{:064x}{:064x}{length:064x}{name}{:064x}{:0<128}", 64, 128, 44, "00");
        let _ = write!(
            text,
            "{comma}{{\"address\":\"{contract:#x}\",\"topics\":[\"0x9a71852b5ff3e6dcfff28eaeb177387d7be860dcf63f02bc0c74d796d373a22c\",\"{}\",\"{}\"],\"data\":\"0x{data}\",\"blockHash\":\"{}\",\"blockNumber\":\"{n:#x}\",\"transactionHash\":\"{}\",\"transactionIndex\":\"0x0\",\"logIndex\":\"0x0\",\"removed\":false}}",
            word(n),
            word(1),
            word(n),
            word(n)
        );
    }
    text.push_str("]}]");
    (Call::Logs { contract, from: 0, to: None }, text)
}
