//! Constants of the WireGuard protocol.
use std::ops::RangeInclusive;
use std::time::Duration;

/// The age at which WireGuard stops using a session (`REJECT_AFTER_TIME`, whitepaper section 6.1).
pub const REJECT_AFTER_TIME: Duration = Duration::from_secs(180);

/// Accepted MTU of an interface, in bytes: from what every IPv4 host must accept (RFC 791) to the longest IP packet
/// less WireGuard's overhead over IPv6 (40 + 8 + 32 bytes).
pub const MTU_RANGE: RangeInclusive<u32> = 576..=65_455;
