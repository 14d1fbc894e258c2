//! Authentication: HMAC-SHA256 over method, decoded path, body and time, compatible with existing clients.
use crate::http::Request;
use ring::hmac;
use spoke_model::secret::Secret;
use spoke_model::time::Wall;

/// Seconds a request's timestamp may be off, either way.
pub const WINDOW: u64 = 300;
/// Shortest accepted shared secret, in bytes.
pub const MIN_SECRET: usize = 32;
/// Longest `X-Nonce`, in characters.
const MAX_NONCE: usize = 64;
/// Begins what is signed with a nonce.
const WITH_NONCE: &[u8] = b"v2|";
/// Paths served without a signature.
pub const OPEN: [&str; 2] = ["/health", "/v1/metrics"];

/// Why a request is not authentic. Existing clients show these texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// A header is missing or repeated.
    #[error("Missing X-Signature or X-Timestamp header")]
    Missing,
    /// The timestamp is not a number.
    #[error("Invalid timestamp")]
    BadTimestamp,
    /// The timestamp is more than [`WINDOW`] off.
    #[error("Request timestamp too old")]
    TooOld,
    /// Not signed with the shared secret.
    #[error("Invalid signature")]
    BadSignature,
    /// A nonce with a separator in it, or too long.
    #[error("Invalid X-Nonce: 1 to 64 characters out of A-Z a-z 0-9 _ -")]
    BadNonce,
    /// The request was accepted before.
    #[error("Request was used before; sign a new one, or add an X-Nonce")]
    Replayed,
    /// It may have been accepted before: the record of its time was dropped.
    #[error("Request may have been used before a restart of this node: sign a new one in a minute")]
    Forgotten,
}

/// Why a shared secret is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSecret {
    /// Too short.
    #[error("the agent's secret has fewer than 32 bytes: make one with `head -c 32 /dev/urandom | base64`")]
    Short,
    /// Too regular, or an example of some manual.
    #[error("the agent's secret is a default or can be guessed: make one with `head -c 32 /dev/urandom | base64`")]
    Guessable,
}

/// Signs and verifies with the shared secret.
pub struct Verifier(hmac::Key);

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[redacted]")
    }
}

/// What identifies an authentic request in a replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof {
    /// Its timestamp, Unix seconds.
    pub timestamp: u64,
    /// The first half of its signature.
    pub digest: [u8; 16],
}

impl Verifier {
    /// Takes a shared secret; a line end is dropped. Refuses a secret that is short or guessable.
    pub fn new(secret: &Secret<Vec<u8>>) -> Result<Self, BadSecret> {
        let bytes = secret.reveal().trim_ascii_end();
        if bytes.len() < MIN_SECRET {
            return Err(BadSecret::Short);
        }
        let mut seen = [false; 256];
        bytes.iter().for_each(|b| seen[usize::from(*b)] = true);
        let lower = bytes.to_ascii_lowercase();
        let known = ["change", "default", "password", "example", "your-", "your_", "shared-secret", "shared_secret"];
        let guessable = known.iter().any(|w| lower.windows(w.len()).any(|part| part == w.as_bytes()));
        if guessable || seen.iter().filter(|s| **s).count() < 10 {
            return Err(BadSecret::Guessable);
        }
        Ok(Self::unchecked(bytes))
    }

    /// Takes any secret, as the published test vectors need.
    pub fn unchecked(secret: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }

    /// The signature of a request in lower-case hex. `path` is percent-decoded and has no query.
    pub fn sign(&self, method: &str, path: &str, body: &[u8], timestamp: &str, nonce: Option<&str>) -> String {
        const_hex::encode(hmac::sign(&self.0, &signed(method, path, body, timestamp, nonce)))
    }

    /// Checks a request in the documented order: headers, time, window, signature. `path` is the decoded path.
    pub fn check(&self, request: &Request, path: &str, now: Wall) -> Result<Proof, Denied> {
        let Claim { signature, text, timestamp } = claim(request, now)?;
        let nonce = nonce(request)?;
        let given = signature_bytes(signature).ok_or(Denied::BadSignature)?;
        // Constant time.
        hmac::verify(&self.0, &signed(&request.method, path, &request.body, text, nonce), &given)
            .map_err(|_| Denied::BadSignature)?;
        let mut digest = [0; 16];
        digest.copy_from_slice(&given[..16]);
        Ok(Proof { timestamp, digest })
    }
}

/// The unverified headers of a request.
struct Claim<'a> {
    signature: &'a str,
    text: &'a str,
    timestamp: u64,
}

fn claim(request: &Request, now: Wall) -> Result<Claim<'_>, Denied> {
    let once = |name| request.header(name).filter(|_| request.count(name) == 1);
    let (Some(signature), Some(text)) = (once("x-signature"), once("x-timestamp")) else {
        return Err(Denied::Missing);
    };
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let timestamp: u64 = text.parse().ok().filter(|_| digits).ok_or(Denied::BadTimestamp)?;
    if now.secs().abs_diff(timestamp) > WINDOW {
        return Err(Denied::TooOld);
    }
    Ok(Claim { signature, text, timestamp })
}

/// The checks that need no body; a request that fails them has its body not read.
pub fn check_head(request: &Request, now: Wall) -> Result<(), Denied> {
    let claim = claim(request, now)?;
    nonce(request)?;
    signature_bytes(claim.signature).map(drop).ok_or(Denied::BadSignature)
}

fn nonce(request: &Request) -> Result<Option<&str>, Denied> {
    let plain = |n: &&str| {
        (1..=MAX_NONCE).contains(&n.len()) && n.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
    };
    match request.count("x-nonce") {
        0 => Ok(None),
        1 => request.header("x-nonce").filter(plain).map(Some).ok_or(Denied::BadNonce),
        _ => Err(Denied::BadNonce),
    }
}

/// The signed string. It includes the nonce: otherwise an observed request could be repeated with another one. With a nonce it
/// begins with a version: otherwise the nonce could be read as the timestamp, and the timestamp as the end of the body, of a
/// request without one.
fn signed(method: &str, path: &str, body: &[u8], timestamp: &str, nonce: Option<&str>) -> Vec<u8> {
    let mut out = Vec::with_capacity(body.len() + path.len() + 64);
    if nonce.is_some() {
        out.extend_from_slice(WITH_NONCE);
    }
    for part in [method.as_bytes(), b"|", path.as_bytes(), b"|", body, b"|", timestamp.as_bytes()] {
        out.extend_from_slice(part);
    }
    if let Some(nonce) = nonce {
        out.push(b'|');
        out.extend_from_slice(nonce.as_bytes());
    }
    out
}

/// Exactly 64 lower-case hex digits: the decoder would accept upper case and a prefix `0x` too.
fn signature_bytes(text: &str) -> Option<[u8; 32]> {
    let canonical = text.len() == 64 && !text.bytes().any(|b| b.is_ascii_uppercase());
    const_hex::decode_to_array(text).ok().filter(|_| canonical)
}

#[cfg(test)]
mod tests;
