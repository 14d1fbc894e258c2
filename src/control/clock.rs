//! The wall clock in milliseconds.

/// Milliseconds since 1970. A server's clock is kept by NTP, unlike a board's.
#[expect(
    clippy::disallowed_methods,
    reason = "proofs are dated to the millisecond, which the clock seam does not give"
)]
pub fn now_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
