//! A subscription to the contract's events at one of several WebSocket endpoints: a machine without I/O. What arrives is never
//! believed: it only brings the next poll forward ([`super::watcher::Event::Woken`]).
use super::jsonrpc::Refusal;
use alloy_primitives::Address;
use serde::Deserialize;
use serde::de::IgnoredAny;
use spoke_model::backoff::{Backoff, JitterRng};
use spoke_model::time::Boot;
use std::borrow::Cow;
use std::time::Duration;

/// Shortest and longest wait between two attempts.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(900));
/// A connection that lasted this long ends the backoff.
const SETTLED: Duration = Duration::from_secs(600);
/// Timeout of the answer to `eth_subscribe`, and to a ping.
const REPLY: Duration = Duration::from_secs(20);
/// A ping is sent after this time without a message: some proxies close a connection that is idle for 100 s.
const QUIET: Duration = Duration::from_secs(90);
/// Bytes that an endpoint may send at once, and more each second. Beyond, it costs more than polls do.
const ALLOWANCE: usize = 64 * 1024;
const ALLOWANCE_PER_SECOND: usize = 64;

/// Why a connection is given up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubscriptionFault {
    /// It cannot subscribe.
    #[error("refuses eth_subscribe: {} ({})", .0.message, .0.code)]
    Refused(Refusal),
    /// No answer to the subscription or to a ping.
    #[error("does not answer")]
    Silent,
    /// It sends more than its allowance.
    #[error("sends more than {ALLOWANCE} bytes and {ALLOWANCE_PER_SECOND} a second")]
    Floods,
}

/// The next thing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Wait until then, and step again.
    Wait(Boot),
    /// Connect to this endpoint and send [`request`]; report [`Subscription::connected`] or [`Subscription::failed`].
    Connect(usize),
    /// Receive: report [`Subscription::received`], or [`Subscription::quiet`] at that time, or [`Subscription::failed`].
    Receive(Boot),
}

/// What a message means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// Nothing to do.
    Nothing,
    /// Events will follow.
    Subscribed,
    /// The contract may have an event.
    Event,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting(Boot),
    Subscribing(Boot),
    Open { quiet_at: Boot, pinged: bool },
}

/// The machine.
///
/// ```text
///  Waiting ──connected──► Subscribing ──its answer──► Open: an event, or a ping after 90 s without any
///     ▲                        │                        │
///     └── backoff, the next ───┴── failed, silent, too much
/// ```
#[derive(Debug)]
pub struct Subscription {
    endpoints: usize,
    current: usize,
    state: State,
    backoff: Backoff,
    rng: JitterRng,
    connected: Boot,
    allowance: usize,
    filled: Boot,
}

impl Subscription {
    /// The first attempt is due at once; `endpoints` is not zero.
    pub fn new(endpoints: usize, now: Boot, seed: u64) -> Self {
        Self {
            endpoints,
            current: 0,
            state: State::Waiting(now),
            backoff: Backoff::new(BACKOFF.0, BACKOFF.1),
            rng: JitterRng::new(seed),
            connected: now,
            allowance: ALLOWANCE,
            filled: now,
        }
    }

    /// What to do next.
    pub fn step(&self, now: Boot) -> Step {
        match self.state {
            State::Waiting(until) if now >= until => Step::Connect(self.current),
            State::Waiting(until) => Step::Wait(until),
            State::Subscribing(until) => Step::Receive(until),
            State::Open { quiet_at, .. } => Step::Receive(quiet_at),
        }
    }

    /// The connection is open and the request sent.
    pub fn connected(&mut self, now: Boot) {
        self.connected = now;
        self.state = State::Subscribing(now + REPLY);
        (self.allowance, self.filled) = (ALLOWANCE, now);
    }

    /// `bytes` were received, and perhaps a message among them. A fault: close the connection and report
    /// [`Subscription::failed`].
    pub fn received(&mut self, now: Boot, bytes: usize, message: Option<&[u8]>) -> Result<Meaning, SubscriptionFault> {
        let seconds = usize::try_from(now.since(self.filled).as_secs()).unwrap_or(usize::MAX);
        if seconds > 0 {
            self.filled = now;
            let more = seconds.saturating_mul(ALLOWANCE_PER_SECOND);
            self.allowance = self.allowance.saturating_add(more).min(ALLOWANCE);
        }
        self.allowance = self.allowance.checked_sub(bytes).ok_or(SubscriptionFault::Floods)?;
        let open = State::Open { quiet_at: now + QUIET, pinged: false };
        match (self.state, message.and_then(read)) {
            (State::Subscribing(_), Some(Message::Answer(None))) => {
                self.state = open;
                Ok(Meaning::Subscribed)
            }
            (State::Subscribing(_), Some(Message::Answer(Some(refusal)))) => Err(SubscriptionFault::Refused(refusal)),
            (State::Open { .. }, message) => {
                self.state = open;
                Ok(if matches!(message, Some(Message::Event)) { Meaning::Event } else { Meaning::Nothing })
            }
            (State::Subscribing(_) | State::Waiting(_), _) => Ok(Meaning::Nothing),
        }
    }

    /// Nothing was received until the time of [`Step::Receive`]: send a ping, unless it is a fault.
    pub fn quiet(&mut self, now: Boot) -> Result<(), SubscriptionFault> {
        match self.state {
            State::Open { pinged: false, .. } => {
                self.state = State::Open { quiet_at: now + REPLY, pinged: true };
                Ok(())
            }
            State::Open { .. } | State::Subscribing(_) | State::Waiting(_) => Err(SubscriptionFault::Silent),
        }
    }

    /// There is no connection, or none any more. Returns the wait, and whether it is the first failure in a row.
    pub fn failed(&mut self, now: Boot) -> (Duration, bool) {
        if matches!(self.state, State::Open { .. }) && now.since(self.connected) >= SETTLED {
            self.backoff.reset();
        }
        let first = self.backoff.failures() == 0;
        let wait = self.backoff.fail(&mut self.rng);
        self.state = State::Waiting(now + wait);
        self.current = (self.current + 1) % self.endpoints.max(1);
        (wait, first)
    }
}

/// The request for the events of a contract: silent while the contract is, where `newHeads` has a header for each block.
pub fn request(contract: Address) -> String {
    format!(
        "{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"eth_subscribe\",\"params\":[\"logs\",{{\"address\":\"{contract:#x}\"}}]}}"
    )
}

enum Message {
    Answer(Option<Refusal>),
    Event,
}

fn read(message: &[u8]) -> Option<Message> {
    #[derive(Deserialize)]
    struct Json<'a> {
        #[serde(borrow)]
        method: Option<Cow<'a, str>>,
        result: Option<IgnoredAny>,
        #[serde(borrow)]
        error: Option<JsonError<'a>>,
    }
    #[derive(Deserialize)]
    struct JsonError<'a> {
        #[serde(default)]
        code: i64,
        #[serde(borrow, default)]
        message: Cow<'a, str>,
    }
    let json: Json<'_> = serde_json::from_slice(message).ok()?;
    match json {
        Json { method: Some(method), .. } => (method == "eth_subscription").then_some(Message::Event),
        Json { error: Some(e), .. } => {
            let message = e.message.chars().filter(|c| !c.is_control()).take(100).collect();
            Some(Message::Answer(Some(Refusal { code: e.code, message })))
        }
        Json { result: Some(_), .. } => Some(Message::Answer(None)),
        Json { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUBSCRIBED: &[u8] = br#"{"jsonrpc":"2.0","id":1,"result":"0x9cef478923ff08bf67fde6c64013158d"}"#;
    const EVENT: &[u8] = br#"{"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"0x9c","result":{"logIndex":"0x0"}}}"#;

    fn at(secs: u64) -> Boot {
        Boot::from_secs(secs)
    }

    /// An open subscription, at 100 s.
    fn open() -> Subscription {
        let mut s = Subscription::new(2, at(100), 1);
        assert_eq!(s.step(at(100)), Step::Connect(0));
        s.connected(at(100));
        assert_eq!(s.received(at(100), 80, Some(EVENT)), Ok(Meaning::Nothing), "before the subscription");
        assert_eq!(s.received(at(100), 80, Some(SUBSCRIBED)), Ok(Meaning::Subscribed));
        s
    }

    #[test]
    fn events_wake_and_nothing_else_does() {
        let mut s = open();
        assert_eq!(s.received(at(101), 500, Some(EVENT)), Ok(Meaning::Event));
        for other in [&b"{}"[..], b"nonsense", b"[1]", br#"{"method":"eth_other"}"#, SUBSCRIBED, b"\xff"] {
            assert_eq!(s.received(at(102), 10, Some(other)), Ok(Meaning::Nothing));
        }
        assert_eq!(s.received(at(102), 2, None), Ok(Meaning::Nothing));
    }

    #[test]
    fn silent_endpoint_is_pinged_and_left() {
        let mut s = open();
        assert_eq!((s.step(at(100)), s.quiet(at(190))), (Step::Receive(at(190)), Ok(())));
        assert_eq!(s.step(at(190)), Step::Receive(at(210)));
        assert_eq!(s.received(at(195), 2, None), Ok(Meaning::Nothing), "its pong");
        assert_eq!((s.step(at(195)), s.quiet(at(285))), (Step::Receive(at(285)), Ok(())));
        assert_eq!(s.quiet(at(305)), Err(SubscriptionFault::Silent));
        let (wait, first) = s.failed(at(305));
        assert!(first && s.step(at(305)) == Step::Wait(at(305) + wait));
        assert_eq!(s.step(at(305) + wait), Step::Connect(1), "the next one");
        s.connected(at(310));
        assert_eq!(s.quiet(at(330)), Err(SubscriptionFault::Silent), "no answer to the subscription");
    }

    #[test]
    fn refusal_is_named() {
        let mut s = Subscription::new(1, at(0), 1);
        s.connected(at(0));
        let refused = s.received(at(0), 90, Some(br#"{"id":1,"error":{"code":-32601,"message":"no such\nmethod"}}"#));
        let text = refused.unwrap_err().to_string();
        assert_eq!(text, "refuses eth_subscribe: no suchmethod (-32601)");
    }

    #[test]
    fn endpoint_that_ends_at_once_is_asked_ever_more_seldom() {
        let mut s = Subscription::new(1, at(0), 7);
        let (mut now, mut attempts) = (at(0), 0);
        while now < at(86_400) {
            match s.step(now) {
                Step::Wait(until) => now = until,
                Step::Connect(_) => {
                    attempts += 1;
                    // Subscribes each time, and ends.
                    s.connected(now);
                    let _ = s.received(now, 80, Some(SUBSCRIBED));
                    s.failed(now);
                }
                Step::Receive(_) => panic!("it has failed"),
            }
        }
        assert!((90..220).contains(&attempts), "{attempts} attempts in a day");
        // One that worked for ten minutes begins with a short wait again.
        s.connected(now);
        let _ = s.received(now, 80, Some(SUBSCRIBED));
        let (wait, first) = s.failed(now + SETTLED);
        assert!(first && wait <= 2 * BACKOFF.0, "{wait:?}");
    }

    #[test]
    fn flood_is_cut_off() {
        let mut s = open();
        let received = 1_000 * (0..1_000).take_while(|_| s.received(at(101), 1_000, Some(EVENT)).is_ok()).count();
        assert!(received <= ALLOWANCE + ALLOWANCE_PER_SECOND, "{received}");
        // As many as an ordinary contract has.
        let mut s = open();
        for minute in 0..1_440 {
            for _ in 0..3 {
                assert_eq!(s.received(at(100 + 60 * minute), 1_000, Some(EVENT)), Ok(Meaning::Event));
            }
        }
    }

    #[test]
    fn request_names_the_contract() {
        let text = request(Address::repeat_byte(0xab));
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["params"][1]["address"], format!("0x{}", "ab".repeat(20)));
    }
}
