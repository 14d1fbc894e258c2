//! Fuzz target: authentication of the agent API. Only signed requests pass, and none is accepted twice.
#![no_main]

use libfuzzer_sys::fuzz_target;
use spoke_api::agent::auth::{Proof, Verifier, check_head};
use spoke_api::agent::replay::{Line, Replays, ReplayVerdict};
use spoke_api::http::{Request, decode_path};
use spoke_model::time::Wall;

const NOW: u64 = 1_700_000_000;

/// Splits off the bytes before the next zero byte.
fn part<'a>(rest: &mut &'a [u8]) -> &'a [u8] {
    let end = rest.iter().position(|b| *b == 0).unwrap_or(rest.len());
    let (head, tail) = rest.split_at(end);
    *rest = tail.get(1..).unwrap_or_default();
    head
}

fuzz_target!(|data: &[u8]| {
    let Some((kind, mut rest)) = data.split_first() else { return };
    let verifier = Verifier::unchecked(b"a secret that the fuzzer cannot know");
    if kind % 4 == 3 {
        if let Some(line) = Line::parse(rest) {
            assert_eq!(Line::parse(line.to_string().as_bytes()), Some(line), "round trip of a line");
        }
        let mut replays = Replays::default();
        let mut accepted = std::collections::HashSet::new();
        for step in rest.chunks_exact(4) {
            let (wall, time) = (u64::from(step[0]) * 40, u64::from(step[1]) * 40);
            let digest = [step[2] % 4, step[1], 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            let proof = Proof { timestamp: time, digest };
            if wall.abs_diff(time) <= 300 && replays.accept(proof, Wall(wall)) == ReplayVerdict::New {
                assert!(accepted.insert(digest), "accepted twice");
            }
            if step[3] % 8 == 0 {
                replays = Replays::load(replays.lines().collect::<Vec<_>>(), step[3] % 16 == 0);
            }
        }
        return;
    }
    let method = String::from_utf8_lossy(part(&mut rest)).into_owned();
    let raw = String::from_utf8_lossy(part(&mut rest)).into_owned();
    let Ok(path) = decode_path(&raw) else { return };
    let (time, nonce, forged) = (part(&mut rest), part(&mut rest), part(&mut rest));
    let text = String::from_utf8_lossy(time).into_owned();
    let signed_nonce = std::str::from_utf8(nonce).ok().filter(|n| !n.is_empty());
    let mut signature = verifier.sign(&method, &path, rest, &text, signed_nonce).into_bytes();
    let genuine = kind % 4 == 0;
    if !genuine {
        // A foreign signature, or one of this request with changed digits.
        match kind % 4 {
            1 => signature = forged.to_vec(),
            _ => signature.iter_mut().zip(forged).for_each(|(s, f)| *s ^= f),
        }
    }
    let unchanged = signature == verifier.sign(&method, &path, rest, &text, signed_nonce).into_bytes();
    let mut headers = vec![("x-signature".to_owned(), signature), ("x-timestamp".to_owned(), time.to_vec())];
    if !nonce.is_empty() {
        headers.push(("x-nonce".to_owned(), nonce.to_vec()));
    }
    let source = std::net::SocketAddr::from(([192, 0, 2, 1], 1));
    let request = Request { method, path: raw.clone(), query: None, host: None, headers, body: rest.to_vec(), source };
    let checked = verifier.check(&request, &path, Wall(NOW));
    if let Ok(proof) = checked {
        assert!(unchanged, "a forged signature was accepted");
        assert!(proof.timestamp.abs_diff(NOW) <= 300);
        assert!(check_head(&request, Wall(NOW)).is_ok(), "check_head refuses an authentic request");
    }
});
