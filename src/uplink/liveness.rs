//! What a peer's counters prove, judged by how they change between two looks and never by the wall-clock times in them.
use spoke_model::time::Boot;
use spoke_net::state::Counters;

/// Bytes that one keepalive adds to the sent counter: an empty message, to which no answer is due.
///
/// The smallest message with an IP packet in it adds 64, a handshake 148 or 92.
const KEEPALIVE_BYTES: u64 = 32;

/// The last look at a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Last {
    /// Never looked: a handshake time seen now may be of any age.
    #[default]
    Never,
    /// It was not there: whatever it has now is new.
    Absent,
    /// It had these.
    Had(Counters),
}

/// What changed since the look before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// A handshake was completed.
    pub handshake: bool,
    /// Something authentic was received.
    pub received: bool,
}

/// What is known of one peer, on the boot clock.
#[derive(Clone, Debug, Default)]
pub struct Witness {
    last: Last,
    handshake_at: Option<Boot>,
    received_at: Option<Boot>,
    unanswered_since: Option<Boot>,
}

impl Witness {
    /// Takes note of a look. Counters that went down belong to a peer made anew: they count from zero.
    pub fn see(&mut self, now: Boot, counters: Counters) -> Moved {
        let before = match self.last {
            Last::Never => {
                self.last = Last::Had(counters);
                return Moved::default();
            }
            Last::Absent => Counters::default(),
            Last::Had(c) if counters.rx < c.rx || counters.tx < c.tx => {
                Counters { last_handshake: c.last_handshake, rx: 0, tx: 0 }
            }
            Last::Had(c) => c,
        };
        self.last = Last::Had(counters);
        let moved = Moved {
            handshake: counters.last_handshake.is_some() && counters.last_handshake != before.last_handshake,
            received: counters.rx > before.rx,
        };
        if moved.handshake {
            self.handshake_at = Some(now);
        }
        let sent = counters.tx - before.tx;
        if moved.received {
            self.received_at = Some(now);
            self.unanswered_since = None;
        } else if sent != 0 && sent != KEEPALIVE_BYTES {
            self.expect_reply(now);
        }
        moved
    }

    /// Takes note that the peer, or its interface, is not there. Returns whether it was there before.
    pub fn see_absent(&mut self) -> bool {
        let was = matches!(self.last, Last::Had(_));
        self.last = Last::Absent;
        self.handshake_at = None;
        was
    }

    /// Something was sent that wants an answer, whatever the counters say: without a route they do not move.
    pub fn expect_reply(&mut self, now: Boot) {
        self.unanswered_since.get_or_insert(now);
    }

    /// An answer came.
    pub const fn settle(&mut self, now: Boot) {
        self.received_at = Some(now);
        self.unanswered_since = None;
    }

    /// When the kernel's handshake time was last seen to change. The handshake itself was up to one look earlier.
    pub const fn handshake_at(&self) -> Option<Boot> {
        self.handshake_at
    }

    /// When something was last seen to have been received.
    pub const fn received_at(&self) -> Option<Boot> {
        self.received_at
    }

    /// Since when something sent has gone without any answer.
    pub const fn unanswered_since(&self) -> Option<Boot> {
        self.unanswered_since
    }

    /// The counters at the last look.
    pub const fn counters(&self) -> Option<Counters> {
        match self.last {
            Last::Had(c) => Some(c),
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
    fn a_handshake_is_a_change_of_the_value_and_nothing_else() {
        let mut w = Witness::default();
        let t = Boot::from_secs;
        assert!(!w.see(t(1), c(Some(1_700_000_000), 500, 500)).handshake, "of unknown age");
        assert!(!w.see(t(2), c(Some(1_700_000_000), 600, 500)).handshake);
        assert!(w.see(t(3), c(Some(20), 700, 700)).handshake, "the wall clock was set back fifty years");
        assert_eq!(w.handshake_at(), Some(t(3)));
        w.see_absent();
        assert_eq!(w.handshake_at(), None, "a peer made anew has no session");
        assert!(!w.see(t(4), c(None, 0, 148)).handshake);
        assert!(w.see(t(5), c(Some(21), 92, 148)).handshake);
    }

    #[test]
    fn a_keepalive_wants_no_answer_and_data_does() {
        let mut w = Witness::default();
        let t = Boot::from_secs;
        w.see(t(0), c(Some(1), 0, 0));
        w.see(t(1), c(Some(1), 0, 32));
        assert_eq!(w.unanswered_since(), None);
        w.see(t(2), c(Some(1), 0, 96));
        w.see(t(3), c(Some(1), 0, 160));
        assert_eq!(w.unanswered_since(), Some(t(2)), "counted from the first");
        w.see(t(4), c(Some(1), 32, 224));
        assert_eq!(w.unanswered_since(), None);
        assert_eq!(w.received_at(), Some(t(4)));
    }

    proptest! {
        #[test]
        fn any_counters_are_read(looks in proptest::collection::vec(
            (any::<u64>(), any::<u64>(), proptest::option::of(any::<u32>()), any::<bool>()), 0..50,
        )) {
            let mut w = Witness::default();
            for (i, (rx, tx, handshake, there)) in looks.into_iter().enumerate() {
                let now = Boot::from_secs(i as u64);
                if there {
                    w.see(now, c(handshake.map(u64::from), rx, tx));
                } else {
                    w.see_absent();
                }
                prop_assert!(w.unanswered_since().is_none_or(|t| t <= now));
            }
        }
    }
}
