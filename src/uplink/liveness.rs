//! Liveness of a peer from changes of its counters between samples; wall-clock values are compared for equality only.
use spoke_model::time::Boot;
use spoke_net::state::Counters;

/// Bytes that one keepalive adds to the sent counter; no reply is due to it. The smallest message with an IP packet
/// adds 64, a handshake 148 or 92.
const KEEPALIVE_BYTES: u64 = 32;

/// Bytes that the smallest message with an IP packet adds to the received counter: no echo reply adds less.
const SMALLEST_DATA: u64 = 64;

/// Bytes of a handshake initiation and of a response (the protocol's messages 1 and 2). All other messages are multiples
/// of 16.
const INITIATION: u64 = 148;
const RESPONSE: u64 = 92;

/// Whether the peer sent a packet between two samples: an answer that came from it through the tunnel. Handshake messages
/// are no packets; keepalives in a window as short as an echo's are too few to be taken for one.
pub fn packet_came(before: Option<Counters>, after: Counters) -> bool {
    // Counters that decreased belong to a recreated peer.
    let before = before.filter(|b| b.rx <= after.rx).unwrap_or_default();
    let grown = after.rx - before.rx;
    let handshake = match grown % 16 {
        // 148 = 4, 92 = 12 modulo 16.
        4 => INITIATION,
        12 => RESPONSE,
        _ if after.last_handshake == before.last_handshake => 0,
        _ => INITIATION + RESPONSE,
    };
    grown.saturating_sub(handshake) >= SMALLEST_DATA
}

/// The last sample of a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Last {
    /// No sample yet: a handshake time may be of any age.
    #[default]
    Never,
    /// The peer did not exist: any handshake is new.
    Absent,
    /// Its counters.
    Counters(Counters),
}

/// What changed since the previous sample.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CounterChange {
    /// A handshake was completed.
    pub handshake: bool,
    /// An authenticated packet was received.
    pub received: bool,
}

/// Activity of one peer, on the boot clock.
#[derive(Clone, Debug, Default)]
pub struct PeerActivity {
    last: Last,
    handshake_at: Option<Boot>,
    received_at: Option<Boot>,
    /// Data was sent and nothing was received since.
    quiet_since: Option<Boot>,
    /// An echo was sent and none was answered since.
    echo_since: Option<Boot>,
}

impl PeerActivity {
    /// Records a sample. Counters that decreased belong to a recreated peer and count from zero.
    pub fn record(&mut self, now: Boot, counters: Counters) -> CounterChange {
        let before = match self.last {
            Last::Never => {
                self.last = Last::Counters(counters);
                return CounterChange::default();
            }
            Last::Absent => Counters::default(),
            Last::Counters(c) if counters.rx < c.rx || counters.tx < c.tx => {
                Counters { last_handshake: c.last_handshake, rx: 0, tx: 0 }
            }
            Last::Counters(c) => c,
        };
        self.last = Last::Counters(counters);
        let change = CounterChange {
            handshake: counters.last_handshake.is_some() && counters.last_handshake != before.last_handshake,
            received: counters.rx > before.rx,
        };
        if change.handshake {
            self.handshake_at = Some(now);
        }
        let sent = counters.tx - before.tx;
        if change.received {
            self.received_at = Some(now);
            self.quiet_since = None;
        } else if sent != 0 && sent != KEEPALIVE_BYTES {
            self.quiet_since.get_or_insert(now);
        }
        change
    }

    /// Records that the peer or its interface does not exist. Returns whether it did before.
    pub fn record_absent(&mut self) -> bool {
        let was = matches!(self.last, Last::Counters(_));
        self.last = Last::Absent;
        self.handshake_at = None;
        was
    }

    /// Records that an echo was sent, independent of the counters, which do not change without a route.
    pub fn expect_echo(&mut self, now: Boot) {
        self.echo_since.get_or_insert(now);
    }

    /// Records that an echo is sent after a time without any, so that earlier ones prove nothing.
    pub const fn restart_echo(&mut self, now: Boot) {
        self.quiet_since = None;
        self.echo_since = Some(now);
    }

    /// Records an echo of the far end. Nothing else answers an echo: WireGuard sends keepalives and handshakes by itself.
    pub const fn record_echo(&mut self, now: Boot) {
        self.received_at = Some(now);
        self.quiet_since = None;
        self.echo_since = None;
    }

    /// When the kernel's handshake time was last seen to change; the handshake was up to one sample period earlier.
    pub const fn handshake_at(&self) -> Option<Boot> {
        self.handshake_at
    }

    /// When a packet was last seen to have been received.
    pub const fn received_at(&self) -> Option<Boot> {
        self.received_at
    }

    /// Since when nothing was received although data was sent.
    pub const fn quiet_since(&self) -> Option<Boot> {
        self.quiet_since
    }

    /// Since when no echo was answered.
    pub const fn echo_since(&self) -> Option<Boot> {
        self.echo_since
    }

    /// The counters of the last sample.
    pub const fn counters(&self) -> Option<Counters> {
        match self.last {
            Last::Counters(c) => Some(c),
            Last::Never | Last::Absent => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    fn c(handshake: Option<u64>, rx: u64, tx: u64) -> Counters {
        Counters { last_handshake: handshake.map(Duration::from_secs), rx, tx }
    }

    #[test]
    fn handshake_is_any_change_of_the_time() {
        let mut w = PeerActivity::default();
        let t = Boot::from_secs;
        assert!(!w.record(t(1), c(Some(1_700_000_000), 500, 500)).handshake, "of unknown age");
        assert!(!w.record(t(2), c(Some(1_700_000_000), 600, 500)).handshake);
        assert!(w.record(t(3), c(Some(20), 700, 700)).handshake, "the wall clock was set back fifty years");
        assert_eq!(w.handshake_at(), Some(t(3)));
        w.record_absent();
        assert_eq!(w.handshake_at(), None, "a recreated peer has no session");
        assert!(!w.record(t(4), c(None, 0, 148)).handshake);
        assert!(w.record(t(5), c(Some(21), 92, 148)).handshake);
    }

    #[test]
    fn unanswered_data_is_noticed_and_keepalives_are_not() {
        let mut w = PeerActivity::default();
        let t = Boot::from_secs;
        w.record(t(0), c(Some(1), 0, 0));
        w.record(t(1), c(Some(1), 0, 32));
        assert_eq!(w.quiet_since(), None);
        w.record(t(2), c(Some(1), 0, 96));
        w.record(t(3), c(Some(1), 0, 160));
        assert_eq!(w.quiet_since(), Some(t(2)), "counted from the first");
        w.record(t(4), c(Some(1), 32, 224));
        assert_eq!(w.quiet_since(), None);
        assert_eq!(w.received_at(), Some(t(4)));
    }

    #[test]
    fn only_an_echo_answers_an_echo() {
        let mut w = PeerActivity::default();
        let t = Boot::from_secs;
        w.record(t(0), c(Some(1), 0, 0));
        w.expect_echo(t(1));
        for (at, rx) in [(2, 32), (3, 96), (4, 188), (5, 10_000)] {
            w.record(t(at), c(Some(at), rx, 64));
            assert_eq!(w.echo_since(), Some(t(1)), "answered by {rx} bytes");
        }
        w.record_echo(t(6));
        assert_eq!(w.echo_since(), None);
    }

    #[test]
    fn packet_is_told_from_handshakes_and_keepalives() {
        let came = |handshake, rx: u64| packet_came(Some(c(Some(1), 1000, 0)), c(Some(handshake), 1000 + rx, 0));
        for rx in [0, 32, 92, 92 + 32, 148, 148 + 32] {
            assert!(!came(2, rx), "{rx} bytes with a handshake");
        }
        assert!(!came(1, 0) && !came(1, 32) && !came(2, 148 + 92));
        for rx in [92 + 64, 148 + 64, 148 + 92 + 64] {
            assert!(came(2, rx), "{rx} bytes with a handshake");
        }
        assert!(came(1, 64));
        assert!(packet_came(None, c(Some(2), 92 + 64, 0)), "a new peer");
        assert!(packet_came(Some(c(Some(1), 1 << 40, 0)), c(Some(2), 92 + 64, 0)), "a recreated peer");
    }

    proptest! {
        #[test]
        fn any_counters_are_accepted(samples in proptest::collection::vec(
            (any::<u64>(), any::<u64>(), proptest::option::of(any::<u32>()), any::<bool>()), 0..50,
        )) {
            let mut w = PeerActivity::default();
            for (i, (rx, tx, handshake, exists)) in samples.into_iter().enumerate() {
                let now = Boot::from_secs(i as u64);
                if exists {
                    w.record(now, c(handshake.map(u64::from), rx, tx));
                } else {
                    w.record_absent();
                }
                prop_assert!(w.quiet_since().is_none_or(|t| t <= now));
            }
        }
    }
}
