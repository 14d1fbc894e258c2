//! Frames of WebSocket (RFC 6455 §5), as a client sends and receives them.
use std::ops::Range;

/// Largest payload, in bytes; an event of the contract has about one thousand.
pub(super) const MAX_PAYLOAD: usize = 16 * 1024;
/// Largest payload of a control frame.
const MAX_CONTROL: usize = 125;

/// The kind of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opcode {
    /// Text, binary data, or the continuation of either.
    Message,
    Close,
    Ping,
    Pong,
}

/// Bytes that are no frame of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadFrame {
    /// A reserved bit or opcode, a masked frame, or a control frame in fragments.
    #[error("it sends what is no frame of WebSocket")]
    Malformed,
    /// A message larger than the limit.
    #[error("it sends a message of more than {MAX_PAYLOAD} bytes")]
    TooLarge,
}

/// A received frame, by its place among the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    /// The last one of a message.
    pub(super) last: bool,
    pub(super) opcode: Opcode,
    pub(super) payload: Range<usize>,
    /// Where the next one begins.
    pub(super) end: usize,
}

/// The first frame; `None`: there is more to come.
pub(super) fn decode(bytes: &[u8]) -> Result<Option<Frame>, BadFrame> {
    let [first, second, rest @ ..] = bytes else { return Ok(None) };
    let (opcode, control) = match first & 0x0f {
        0..=2 => (Opcode::Message, false),
        8 => (Opcode::Close, true),
        9 => (Opcode::Ping, true),
        10 => (Opcode::Pong, true),
        _ => return Err(BadFrame::Malformed),
    };
    let last = first & 0x80 != 0;
    let (head, length) = match (second & 0x7f, rest) {
        (126, [a, b, ..]) => (4, u64::from(u16::from_be_bytes([*a, *b]))),
        (127, [a, b, c, d, e, f, g, h, ..]) => (10, u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h])),
        (126 | 127, _) => return Ok(None),
        (short, _) => (2, u64::from(short)),
    };
    let length = usize::try_from(length).ok().filter(|n| *n <= MAX_PAYLOAD).ok_or(BadFrame::TooLarge)?;
    if first & 0x70 != 0 || second & 0x80 != 0 || control && (!last || length > MAX_CONTROL) {
        return Err(BadFrame::Malformed);
    }
    let end = head + length;
    Ok((bytes.len() >= end).then_some(Frame { last, opcode, payload: head..end, end }))
}

/// A whole frame of a client: always masked.
pub(super) fn encode(opcode: Opcode, payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
    let opcode = match opcode {
        Opcode::Message => 1,
        Opcode::Close => 8,
        Opcode::Ping => 9,
        Opcode::Pong => 10,
    };
    let mut out = vec![0x80 | opcode];
    match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
        (Ok(short @ ..126), _) => out.push(0x80 | short),
        (_, Ok(length)) => {
            out.push(0x80 | 126);
            out.extend_from_slice(&length.to_be_bytes());
        }
        (_, Err(_)) => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(payload.len() as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&mask);
    out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A frame as a server sends it.
    fn from_server(first: u8, payload: &[u8]) -> Vec<u8> {
        let masked = encode(Opcode::Message, payload, [0; 4]);
        let head = masked.len() - payload.len() - 4;
        let mut out = [&masked[..head], payload].concat();
        (out[0], out[1]) = (first, out[1] & 0x7f);
        out
    }

    #[test]
    fn examples_of_the_rfc_are_read_and_written() {
        // RFC 6455 §5.7.
        let masked = b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58";
        assert_eq!(encode(Opcode::Message, b"Hello", [0x37, 0xfa, 0x21, 0x3d]), masked);
        let frame = |last, opcode, payload: Range<usize>| Frame { last, opcode, end: payload.end, payload };
        assert_eq!(decode(b"\x81\x05Hello"), Ok(Some(frame(true, Opcode::Message, 2..7))));
        assert_eq!(decode(b"\x01\x03Hel\x80"), Ok(Some(frame(false, Opcode::Message, 2..5))));
        assert_eq!(decode(b"\x89\x05Hello"), Ok(Some(frame(true, Opcode::Ping, 2..7))));
        let long = [&b"\x82\x7e\x01\x00"[..], &[0; 256]].concat();
        assert_eq!(decode(&long), Ok(Some(frame(true, Opcode::Message, 4..260))));
    }

    #[test]
    fn what_no_server_sends_is_refused() {
        for bytes in [&b"\x81\x85\x37\xfa"[..], b"\xc1\x00", b"\x83\x00", b"\x09\x00", b"\x89\x7e\x01\x00"] {
            assert_eq!(decode(bytes), Err(BadFrame::Malformed), "{bytes:x?}");
        }
        for bytes in [
            &b"\x81\x7e\x40\x01"[..],
            b"\x81\x7f\x00\x00\x00\x01\x00\x00\x00\x00",
            &[0x81, 127, 255, 255, 255, 255, 255, 255, 255, 255],
        ] {
            assert_eq!(decode(bytes), Err(BadFrame::TooLarge), "{bytes:x?}");
        }
    }

    proptest! {
        #[test]
        fn frames_are_read_whole_or_not_at_all(length in 0usize..MAX_PAYLOAD, cut in any::<prop::sample::Index>()) {
            let bytes = from_server(0x81, &vec![7; length]);
            let frame = decode(&bytes).unwrap().unwrap();
            prop_assert_eq!((frame.payload.len(), frame.end), (length, bytes.len()));
            prop_assert_eq!(decode(&bytes[..cut.index(bytes.len())]), Ok(None));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(Some(frame)) = decode(&bytes) {
                prop_assert!(frame.payload.end == frame.end && frame.end <= bytes.len());
            }
        }
    }
}
