//! Encoding and decoding of ICMP echo messages (RFC 792, RFC 4443).

/// Bytes of an echo request: header and four-byte mark. With an IPv4 header it fills two 16-byte blocks of WireGuard.
pub const ECHO_LEN: usize = 12;

/// Address family of an echo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// ICMP.
    V4,
    /// ICMPv6. The kernel fills in the checksum, which covers the source address.
    V6,
}

impl Family {
    const fn request(self) -> u8 {
        match self {
            Self::V4 => 8,
            Self::V6 => 128,
        }
    }

    const fn reply(self) -> u8 {
        match self {
            Self::V4 => 0,
            Self::V6 => 129,
        }
    }
}

/// Identity of an echo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Echo {
    /// Identifier; not compared in replies, since a ping socket overwrites it.
    pub id: u16,
    /// Sequence number.
    pub seq: u16,
    /// Random per process; distinguishes replies to other processes.
    pub mark: u32,
}

/// The echo request for the socket.
pub fn encode(family: Family, echo: Echo) -> [u8; ECHO_LEN] {
    let mut m = [0; ECHO_LEN];
    m[0] = family.request();
    m[4..6].copy_from_slice(&echo.id.to_be_bytes());
    m[6..8].copy_from_slice(&echo.seq.to_be_bytes());
    m[8..12].copy_from_slice(&echo.mark.to_be_bytes());
    if family == Family::V4 {
        let sum = checksum(&m);
        m[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    m
}

/// The echo that `message` answers; `None` if it is no complete echo reply. `message` begins with the ICMP header, as
/// ping sockets and raw IPv6 sockets return it; for raw IPv4 sockets see [`strip_ipv4`].
pub fn decode(family: Family, message: &[u8]) -> Option<Echo> {
    let m: &[u8; ECHO_LEN] = message.get(..ECHO_LEN)?.try_into().ok()?;
    if m[0] != family.reply() || m[1] != 0 || message.len() != ECHO_LEN {
        return None;
    }
    if family == Family::V4 && checksum(m) != 0 {
        return None;
    }
    Some(Echo {
        id: u16::from_be_bytes([m[4], m[5]]),
        seq: u16::from_be_bytes([m[6], m[7]]),
        mark: u32::from_be_bytes([m[8], m[9], m[10], m[11]]),
    })
}

/// The payload of an IPv4 packet of a raw socket; `None` if the header is incomplete.
pub fn strip_ipv4(packet: &[u8]) -> Option<&[u8]> {
    let first = *packet.first()?;
    let header = usize::from(first & 0x0f) * 4;
    if first >> 4 != 4 || header < 20 {
        return None;
    }
    packet.get(header..)
}

/// The internet checksum (RFC 1071); 0 over a message that contains its checksum.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|c| u32::from(u16::from_be_bytes([c[0], c.get(1).copied().unwrap_or(0)])))
        .fold(0, u32::wrapping_add);
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn request_has_the_known_bytes() {
        // Type 8, id 0x1234, sequence 1, mark 0xdeadbeef.
        // Sum: 0x0800+0x1234+0x0001+0xdead+0xbeef = 1b7d1 -> b7d2 -> 482d.
        let m = encode(Family::V4, Echo { id: 0x1234, seq: 1, mark: 0xdead_beef });
        assert_eq!(m, [8, 0, 0x48, 0x2d, 0x12, 0x34, 0, 1, 0xde, 0xad, 0xbe, 0xef]);
        assert_eq!(decode(Family::V4, &m), None, "a request is not a reply");
    }

    fn answer(family: Family, echo: Echo) -> [u8; ECHO_LEN] {
        let mut m = encode(family, echo);
        m[0] = family.reply();
        m[2..4].fill(0);
        if family == Family::V4 {
            let sum = checksum(&m);
            m[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        m
    }

    proptest! {
        #[test]
        fn reply_decodes_to_its_request(id: u16, seq: u16, mark: u32, v6: bool) {
            let family = if v6 { Family::V6 } else { Family::V4 };
            let echo = Echo { id, seq, mark };
            prop_assert_eq!(decode(family, &answer(family, echo)), Some(echo));
        }

        #[test]
        fn flipped_bit_is_rejected(id: u16, seq: u16, mark: u32, at in 0usize..ECHO_LEN * 8) {
            let mut m = answer(Family::V4, Echo { id, seq, mark });
            m[at / 8] ^= 1 << (at % 8);
            prop_assert_eq!(decode(Family::V4, &m), None);
        }

        #[test]
        fn any_bytes_are_decoded_or_rejected(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = (decode(Family::V4, &bytes), decode(Family::V6, &bytes));
            if let Some(rest) = strip_ipv4(&bytes) {
                prop_assert!(rest.len() <= bytes.len() - 20);
            }
        }
    }
}
