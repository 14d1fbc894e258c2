//! Noise for everything that reads what a chain's endpoint sends: it is read or refused, never a panic, and never a grant
//! that the bytes do not spell out.
#![no_main]

use libfuzzer_sys::fuzz_target;
use spoke::grants::abi::{decode_head, decode_reads, event_text, no_such_token};
use spoke::grants::jsonrpc::{Ask, At, decode};
use spoke::grants::policy::decide;
use spoke::net::key::PublicKey;

fuzz_target!(|data: &[u8]| {
    let Some((kind, rest)) = data.split_first() else { return };
    match kind % 4 {
        0 => {
            let asks = [
                Ask::ChainId,
                Ask::ClientVersion,
                Ask::Run { code: Vec::new(), at: At::Latest },
                Ask::Logs { contract: Default::default(), from: 0, to: None },
                Ask::Header(At::Latest),
            ];
            if let Ok(answers) = decode(rest, &asks) {
                assert_eq!(answers.len(), asks.len());
            }
        }
        1 => {
            let key = PublicKey([7; 32]);
            let text = key.to_string();
            for reads in decode_reads(rest, 1).into_iter().flatten() {
                if decide(&reads, "edge-1", &key).is_ok_and(|d| d.reason.grants()) {
                    let spelt = |word: &[u8]| rest.windows(word.len()).any(|w| w == word);
                    assert!(spelt(text.as_bytes()) && spelt(b"edge-1"), "a grant out of nothing");
                }
            }
        }
        2 => {
            let _ = decode_head(rest);
        }
        _ => {
            let _ = (no_such_token(rest), event_text(rest, 0), event_text(rest, 3));
        }
    }
});
