//! The published test vectors, the order of the checks, and single-bit changes.
use super::*;
use proptest::prelude::*;

const SECRET: &[u8] = b"s3cr3t-for-test";
const NOW: Wall = Wall(1_700_000_000);

fn request(method: &str, path: &str, body: &[u8], headers: &[(&str, &str)]) -> Request {
    Request {
        method: method.into(),
        path: path.into(),
        query: None,
        host: None,
        headers: headers.iter().map(|(n, v)| ((*n).to_owned(), v.as_bytes().to_vec())).collect(),
        body: body.to_vec(),
        source: "192.0.2.1:1".parse().unwrap(),
    }
}

const VECTORS: [(&str, &str, &str, &str); 4] = [
    ("GET", "/health", "", "623dbf9954aef24bb049a38fb56fd4419aa7cb23af0c7097dc1c8a9d86ec7b26"),
    ("GET", "/v1/wg/wg0/dump", "", "1e62e61e7af99f9dcf04c2eb1307d16a35277a1f82cf8d36a6ea5c5843d0927d"),
    (
        "POST",
        "/v1/wg/wg0/peers",
        r#"{"public_key": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=", "allowed_ips": ["10.0.1.2/32"], "preshared_key": null, "persistent_keepalive": 25}"#,
        "c51109d9a52c4c7ea14c7f200e858d3448cfc974701c398a2e8d09d37eccb299",
    ),
    (
        "DELETE",
        "/v1/wg/wg0/peers/+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/s=",
        "",
        "ff28f78d43aff009ea7b8a7283fc1a947a2ebf47bc877d12d20e5a26ecb5f2fa",
    ),
];

#[test]
fn published_vectors_verify() {
    let verifier = Verifier::unchecked(SECRET);
    for (method, path, body, signature) in VECTORS {
        assert_eq!(verifier.sign(method, path, body.as_bytes(), "1700000000", None), signature, "{method} {path}");
        let headers = [("x-signature", signature), ("x-timestamp", "1700000000")];
        let r = request(method, path, body.as_bytes(), &headers);
        assert!(verifier.check(&r, path, NOW).is_ok(), "{method} {path}");
    }
}

#[test]
fn checks_follow_the_documented_order() {
    let verifier = Verifier::unchecked(SECRET);
    let good = VECTORS[1].3;
    let check = |headers: &[(&str, &str)], now| {
        verifier.check(&request("GET", VECTORS[1].1, b"", headers), VECTORS[1].1, now).unwrap_err().to_string()
    };
    let missing = "Missing X-Signature or X-Timestamp header";
    assert_eq!(check(&[], NOW), missing);
    assert_eq!(check(&[("x-timestamp", "nonsense")], NOW), missing);
    assert_eq!(check(&[("x-signature", good)], NOW), missing);
    let both = |t| [("x-signature", "nonsense"), ("x-timestamp", t)];
    for bad in ["nonsense", "", "-1", "+1700000000", "1700000000.0", "1_700_000_000", "99999999999999999999999"] {
        assert_eq!(check(&both(bad), NOW), "Invalid timestamp", "{bad}");
    }
    // An hour off in both directions, and one second beyond the window.
    for off in [1_700_003_600, 1_699_996_400, 1_700_000_301, 1_699_999_699] {
        assert_eq!(
            check(&[("x-signature", good), ("x-timestamp", "1700000000")], Wall(off)),
            "Request timestamp too old"
        );
    }
    assert_eq!(check(&both("1700000000"), NOW), "Invalid signature");
    assert_eq!(check(&both("1700000300"), NOW), "Invalid signature", "at the edge of the window");
    let twice = [("x-signature", good), ("x-timestamp", "1700000000"), ("x-signature", good)];
    assert_eq!(check(&twice, NOW), missing);
    for encoding in [good.to_uppercase(), format!("0x{good}"), good[..62].to_owned()] {
        assert_eq!(check(&[("x-signature", &encoding), ("x-timestamp", "1700000000")], NOW), "Invalid signature");
    }
}

#[test]
fn nonce_is_signed() {
    let verifier = Verifier::unchecked(SECRET);
    let path = "/v1/wg/wg0/enable";
    let signature = verifier.sign("POST", path, b"", "1700000000", Some("one"));
    let base = [("x-signature", signature.as_str()), ("x-timestamp", "1700000000")];
    let with = |nonce| request("POST", path, b"", &[base[0], base[1], ("x-nonce", nonce)]);
    assert!(verifier.check(&with("one"), path, NOW).is_ok());
    assert_eq!(verifier.check(&with("two"), path, NOW), Err(Denied::BadSignature));
    assert_eq!(verifier.check(&request("POST", path, b"", &base), path, NOW), Err(Denied::BadSignature));
    // A separator would make the signed string ambiguous.
    let twice = request("POST", path, b"", &[base[0], base[1], ("x-nonce", "one"), ("x-nonce", "one")]);
    for bad in ["", "a|b", "a b", &"n".repeat(65), "\u{e9}"] {
        assert_eq!(verifier.check(&with(bad), path, NOW), Err(Denied::BadNonce), "{bad:?}");
    }
    assert_eq!(verifier.check(&twice, path, NOW), Err(Denied::BadNonce));
}

#[test]
fn no_field_of_a_request_with_a_nonce_is_read_as_another() {
    let verifier = Verifier::unchecked(SECRET);
    let path = "/v1/wg/wg0/syncconf";
    // Observed: a nonce that is a timestamp. Without it, the timestamp would be the end of the body.
    let observed = verifier.sign("POST", path, b"body", "1700000000", Some("1700000001"));
    let headers = [("x-signature", observed.as_str()), ("x-timestamp", "1700000001")];
    let read_otherwise = request("POST", path, b"body|1700000000", &headers);
    assert_eq!(verifier.check(&read_otherwise, path, NOW), Err(Denied::BadSignature));
    // The reverse: the end of a body as the timestamp, the timestamp as the nonce.
    let observed = verifier.sign("POST", path, b"body|1700000000", "1700000001", None);
    let headers = [("x-signature", observed.as_str()), ("x-timestamp", "1700000000"), ("x-nonce", "1700000001")];
    assert_eq!(verifier.check(&request("POST", path, b"body", &headers), path, NOW), Err(Denied::BadSignature));
}

#[test]
fn head_is_judged_by_everything_but_the_signature() {
    let good = "0".repeat(64);
    let head = |signature: &str, nonce: &str| {
        let headers = [("x-signature", signature), ("x-timestamp", "1700000000"), ("x-nonce", nonce)];
        check_head(&request("POST", "/v1/confirm", b"", &headers), NOW)
    };
    assert_eq!(head(&good, "n"), Ok(()));
    assert_eq!(head("short", "n"), Err(Denied::BadSignature));
    assert_eq!(head(&good, "a|b"), Err(Denied::BadNonce));
}

#[test]
fn weak_secrets_are_refused() {
    let try_one = |text: &str| Verifier::new(&Secret::new(text.as_bytes().to_vec())).map(drop);
    assert_eq!(try_one("s3cr3t-for-test"), Err(BadSecret::Short));
    assert_eq!(try_one("k7GqP2vXc9LmR4tZw8BnY1sDf6HjA3e\n"), Err(BadSecret::Short), "31 bytes and a line end");
    for weak in [
        "change-me-in-production-please-now!",
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "0123456701234567012345670123456701",
    ] {
        assert_eq!(try_one(weak), Err(BadSecret::Guessable), "{weak}");
    }
    assert_eq!(try_one("k7GqP2vXc9LmR4tZw8BnY1sDf6HjA3eU\n"), Ok(()));
}

proptest! {
    #[test]
    fn changed_bit_is_refused(which in 0usize..4, part in 0usize..5, at in 0usize..400, bit in 0u8..7) {
        let verifier = Verifier::unchecked(SECRET);
        let (method, path, body, signature) = VECTORS[which];
        let mut parts = [method, path, body, signature, "1700000000"].map(|p| p.as_bytes().to_vec());
        prop_assume!(!parts[part].is_empty());
        let at = at % parts[part].len();
        parts[part][at] ^= 1 << bit;
        let [method, path, body, signature, timestamp] = parts;
        let (Ok(method), Ok(path)) = (String::from_utf8(method), String::from_utf8(path)) else { return Ok(()) };
        let mut r = request(&method, &path, &body, &[]);
        r.headers = vec![("x-signature".into(), signature), ("x-timestamp".into(), timestamp)];
        prop_assert!(verifier.check(&r, &path, NOW).is_err());
    }

    #[test]
    fn arbitrary_headers_do_not_panic(signature: Vec<u8>, timestamp: Vec<u8>, nonce: Vec<u8>, body: Vec<u8>) {
        let verifier = Verifier::unchecked(SECRET);
        let mut r = request("POST", "/", &body, &[]);
        r.headers = vec![("x-signature".into(), signature), ("x-timestamp".into(), timestamp), ("x-nonce".into(), nonce)];
        prop_assert!(verifier.check(&r, "/", NOW).is_err());
    }
}
