//! The body of a netlink request: a fixed structure, then attributes.
use netlink_packet_core::{Emitable, NLA_F_NESTED};

/// Bytes of a message after its netlink header; also a list of attributes inside another one.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Body(Vec<u8>);

impl Emitable for Body {
    fn buffer_len(&self) -> usize {
        self.0.len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.0);
    }
}

impl Body {
    /// A body that begins with a fixed structure, whose size is a multiple of 4 bytes.
    pub(super) fn new(structure: &[u8]) -> Self {
        Self(structure.to_vec())
    }

    /// Adds an attribute.
    pub(super) fn raw(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// Adds a string with its terminating zero.
    pub(super) fn text(self, kind: u16, text: &str) -> Self {
        self.raw(kind, &[text.as_bytes(), &[0]].concat())
    }

    /// Adds a number in network byte order, as nfnetlink has it.
    pub(super) fn number(self, kind: u16, n: u32) -> Self {
        self.raw(kind, &n.to_be_bytes())
    }

    /// Adds a number in the machine's byte order, as rtnetlink has it.
    pub(super) fn word(self, kind: u16, n: u32) -> Self {
        self.raw(kind, &n.to_ne_bytes())
    }

    /// Adds attributes inside one without the flag for it, as rtnetlink has it.
    pub(super) fn list(self, kind: u16, inner: Self) -> Self {
        self.raw(kind, &inner.0)
    }

    /// Adds attributes inside one that is flagged as nested.
    pub(super) fn nest(self, kind: u16, inner: Self) -> Self {
        self.raw(kind | NLA_F_NESTED, &inner.0)
    }
}
