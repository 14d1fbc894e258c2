//! One netlink socket and its protocol: sequence numbers, acknowledgements, interrupted dumps, lost answers.
use netlink_packet_core::{
    Emitable, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NLMSG_NOOP,
    NLMSG_OVERRUN, NetlinkBuffer,
};
use netlink_sys::{AsyncSocket, SocketAddr, TokioSocket};
use rustix::io::Errno;
use std::future::poll_fn;
use std::io;
use std::time::Duration;
use zeroize::{Zeroize, Zeroizing};

/// Bytes of a netlink message's header.
const HEADER: usize = 16;

/// The kernel puts up to 32 KiB of a dump into one datagram, depending on the buffer of earlier reads.
const INBOX: usize = 64 * 1024;

/// Messages sent at once. Each is acknowledged by its own datagram; all of those must fit into the receive buffer.
const BURST: usize = 64;

/// Bytes sent at once; far below the least send buffer a kernel is configured with (208 KiB).
const BURST_BYTES: usize = 64 * 1024;

/// How often an interrupted dump is repeated before the attempt fails.
const DUMP_ATTEMPTS: u32 = 16;

/// The kernel handles a request inside `sendmsg`, so the answer is there when sending returns; a later one was lost.
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);

/// A request without its sequence number. The body is wiped when dropped: it may hold keys.
pub(super) struct Request {
    kind: u16,
    flags: u16,
    body: Zeroizing<Vec<u8>>,
}

impl Request {
    /// A request of a message type, with flags beside `NLM_F_REQUEST`.
    pub(super) fn new(kind: u16, flags: u16, body: &impl Emitable) -> Self {
        // Allocated at its final size: a growing buffer leaves copies of keys behind.
        let mut bytes = Zeroizing::new(vec![0; body.buffer_len()]);
        body.emit(&mut bytes);
        Self { kind, flags: flags | NLM_F_REQUEST, body: bytes }
    }

    /// The same with more flags.
    pub(super) fn with_flags(mut self, flags: u16) -> Self {
        self.flags |= flags;
        self
    }

    /// What follows the header.
    #[cfg(test)]
    pub(super) fn body(&self) -> &[u8] {
        &self.body
    }

    /// Bytes on the wire.
    pub(super) fn len(&self) -> usize {
        (HEADER + self.body.len()).next_multiple_of(4)
    }
}

/// One message of an answer, without its header.
pub(super) struct Message<'a> {
    /// Message type.
    pub(super) kind: u16,
    /// What follows the header.
    pub(super) payload: &'a [u8],
    /// The kernel's state has changed since the dump began.
    interrupted: bool,
}

/// What ends the answer to a request.
pub(super) enum End {
    /// Acknowledged or refused.
    Status(Result<(), Errno>),
    /// The end of a dump.
    Dump,
}

/// A connected netlink socket. Requests are answered before the next one is sent.
pub(super) struct Conversation {
    socket: TokioSocket,
    sequence: u32,
    inbox: Zeroizing<Vec<u8>>,
    outbox: Zeroizing<Vec<u8>>,
}

impl Conversation {
    /// Opens a socket of a netlink protocol. Must be called within a runtime.
    pub(super) fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = TokioSocket::new(protocol)?;
        let options = socket.socket_mut();
        options.bind_auto()?;
        // Connected: no other process can answer in the kernel's place.
        options.connect(&SocketAddr::new(0, 0))?;
        // Errors contain only the sequence number, not a copy of the request.
        options.set_cap_ack(true)?;
        // Without this option the kernel ignores the filters of dumps and sends everything. Only rtnetlink uses it.
        options.set_netlink_get_strict_chk(true)?;
        Ok(Self {
            socket,
            sequence: 0,
            inbox: Zeroizing::new(Vec::with_capacity(INBOX)),
            outbox: Zeroizing::new(Vec::with_capacity(BURST_BYTES)),
        })
    }

    /// Sends requests in order, many at a time, and returns the kernel's answer to each. After an outer error it is
    /// unknown which of them were applied.
    pub(super) async fn submit(&mut self, requests: &[Request]) -> io::Result<Vec<Result<(), Errno>>> {
        let mut results = Vec::with_capacity(requests.len());
        let mut rest = requests;
        while !rest.is_empty() {
            let mut bytes = 0;
            let count = rest
                .iter()
                .take(BURST)
                .take_while(|r| {
                    bytes += r.len();
                    bytes <= BURST_BYTES
                })
                .count()
                .max(1);
            let (burst, later) = rest.split_at(count);
            rest = later;
            let first = self.send(burst, NLM_F_ACK).await?;
            let from = results.len();
            results.resize(from + count, None);
            let mut missing = count;
            while missing > 0 {
                self.receive(|sequence, _, end| {
                    let slot =
                        usize::try_from(sequence.wrapping_sub(first)).ok().and_then(|i| results.get_mut(from + i));
                    if let (Some(slot), Some(End::Status(status))) = (slot, end)
                        && slot.replace(status).is_none()
                    {
                        missing -= 1;
                    }
                    Ok(())
                })
                .await?;
            }
        }
        Ok(results.into_iter().flatten().collect())
    }

    /// Sends an nfnetlink transaction, including its begin and end messages, at once. The last request before the end
    /// has `NLM_F_ACK`; refusals arrive before its acknowledgement.
    pub(super) async fn transact(&mut self, requests: &[Request]) -> io::Result<()> {
        let first = self.send(requests, 0).await?;
        let last = u32::try_from(requests.len()).unwrap_or(u32::MAX).saturating_sub(2);
        let mut done = None;
        while done.is_none() {
            self.receive(|sequence, _, end| {
                let index = sequence.wrapping_sub(first);
                match end {
                    Some(End::Status(Err(errno))) if index <= last.saturating_add(1) => {
                        done.get_or_insert(Err(errno.into()));
                    }
                    Some(End::Status(Ok(()))) if index == last => {
                        done.get_or_insert(Ok(()));
                    }
                    Some(End::Status(_) | End::Dump) | None => {}
                }
                Ok(())
            })
            .await?;
        }
        done.unwrap_or(Ok(()))
    }

    /// Sends one request that is answered by at most one message, and reads that.
    pub(super) async fn ask<T: Send>(
        &mut self,
        request: &Request,
        mut read: impl FnMut(Message<'_>) -> io::Result<T> + Send,
    ) -> io::Result<T> {
        let first = self.send(std::slice::from_ref(request), NLM_F_ACK).await?;
        let mut answer = None;
        let mut status = None;
        while status.is_none() {
            self.receive(|sequence, message, end| {
                if sequence == first {
                    match end {
                        Some(End::Status(s)) => status = Some(s),
                        Some(End::Dump) => status = Some(Ok(())),
                        None => answer = Some(read(message)?),
                    }
                }
                Ok(())
            })
            .await?;
        }
        match status {
            Some(Err(errno)) => Err(errno.into()),
            Some(Ok(())) | None => answer.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no answer")),
        }
    }

    /// Requests a dump and calls `read` for each message. `begin` starts each attempt with an empty result, since an
    /// attempt during which the kernel's state changed is repeated.
    pub(super) async fn dump<T: Send>(
        &mut self,
        request: &Request,
        mut begin: impl FnMut() -> T + Send,
        mut read: impl FnMut(&mut T, Message<'_>) -> io::Result<()> + Send,
    ) -> io::Result<T> {
        for _ in 0..DUMP_ATTEMPTS {
            let mut all = begin();
            let first = self.send(std::slice::from_ref(request), NLM_F_DUMP).await?;
            let mut fault = None;
            let mut interrupted = false;
            let mut ended = None;
            while ended.is_none() {
                self.receive(|sequence, message, end| {
                    if sequence == first {
                        interrupted |= message.interrupted;
                        match end {
                            Some(End::Dump) => ended = Some(Ok(())),
                            Some(End::Status(status)) => ended = Some(status),
                            // The rest is read nevertheless: the socket must be empty for the next request.
                            None if fault.is_none() => fault = read(&mut all, message).err(),
                            None => {}
                        }
                    }
                    Ok(())
                })
                .await?;
            }
            if let Some(Err(errno)) = ended {
                // Newer kernels end an inconsistent dump with EINTR.
                if errno != Errno::INTR {
                    return Err(errno.into());
                }
            } else if interrupted {
                tracing::debug!("dump interrupted by a change; repeating it");
            } else {
                return fault.map_or(Ok(all), Err);
            }
        }
        Err(io::Error::new(io::ErrorKind::Interrupted, "the kernel's state kept changing during the dump"))
    }

    /// Overwrites the received bytes, which may contain keys.
    pub(super) fn wipe(&mut self) {
        self.inbox.zeroize();
    }

    /// Sends requests in one datagram; returns the sequence number of the first.
    async fn send(&mut self, requests: &[Request], flags: u16) -> io::Result<u32> {
        let first = self.sequence.wrapping_add(1);
        self.outbox.clear();
        let total = requests.iter().map(Request::len).sum();
        if self.outbox.capacity() < total {
            self.outbox = Zeroizing::new(Vec::with_capacity(total));
        }
        for request in requests {
            self.sequence = self.sequence.wrapping_add(1);
            let start = self.outbox.len();
            self.outbox.resize(start + request.len(), 0);
            let length = HEADER + request.body.len();
            let mut header = NetlinkBuffer::new(&mut self.outbox[start..]);
            header.set_length(u32::try_from(length).map_err(|_| io::ErrorKind::InvalidInput)?);
            header.set_message_type(request.kind);
            header.set_flags(request.flags | flags);
            header.set_sequence_number(self.sequence);
            self.outbox[start + HEADER..start + length].copy_from_slice(&request.body);
        }
        let sent = within(poll_fn(|cx| self.socket.poll_send(cx, &self.outbox))).await;
        self.outbox.zeroize();
        sent.map(|_| first)
    }

    /// Receives one datagram; calls `each` per message, with its sequence number and the end of the answer, if any.
    async fn receive(
        &mut self,
        each: impl FnMut(u32, Message<'_>, Option<End>) -> io::Result<()> + Send,
    ) -> io::Result<()> {
        self.inbox.clear();
        within(poll_fn(|cx| self.socket.poll_recv(cx, &mut *self.inbox))).await?;
        if self.inbox.len() >= INBOX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "an answer was longer than the buffer for it"));
        }
        split(&self.inbox, each)
    }
}

/// Calls `each` per message of a datagram, with its sequence number and the end of the answer, if any.
pub(super) fn split<'a>(
    datagram: &'a [u8],
    mut each: impl FnMut(u32, Message<'a>, Option<End>) -> io::Result<()>,
) -> io::Result<()> {
    let mut rest = datagram;
    while rest.len() >= HEADER {
        let message = NetlinkBuffer::new_checked(rest).map_err(invalid)?;
        let (kind, payload) = (message.message_type(), message.payload());
        let end = match kind {
            NLMSG_ERROR => Some(End::Status(status(payload))),
            NLMSG_DONE => Some(status(payload).map_or_else(|e| End::Status(Err(e)), |()| End::Dump)),
            NLMSG_OVERRUN => return Err(Errno::NOBUFS.into()),
            _ => None,
        };
        if kind != NLMSG_NOOP {
            let interrupted = message.flags() & NLM_F_DUMP_INTR != 0;
            each(message.sequence_number(), Message { kind, payload, interrupted }, end)?;
        }
        let length = usize::try_from(message.length()).map_err(invalid)?;
        rest = length.checked_next_multiple_of(4).and_then(|l| rest.get(l..)).unwrap_or_default();
    }
    Ok(())
}

/// The status at the start of an `NLMSG_ERROR` or `NLMSG_DONE`: 0 or a negated errno.
fn status(payload: &[u8]) -> Result<(), Errno> {
    match payload.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code)) {
        0 => Ok(()),
        // `Errno` holds 1 to 4095 and panics otherwise.
        code @ -4095..0 => Err(Errno::from_raw_os_error(-code)),
        _ => Err(Errno::PROTO),
    }
}

async fn within<T>(io: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(REPLY_TIMEOUT, io).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// The error for a malformed message of the kernel.
pub(super) fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
