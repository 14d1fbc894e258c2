//! Endpoint selection and order, backoff, and the counting of equal answers.
use spoke_config::grants::MAX_ENDPOINTS;
use spoke_model::time::Boot;
use std::time::Duration;

/// First wait after a failure.
const BACKOFF_MIN: Duration = Duration::from_secs(1);
/// Longest backoff.
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// How long an endpoint is not asked after it reported a block with a wrong height.
const REFUTED_WAIT: Duration = Duration::from_secs(60);
/// How long an endpoint whose proof failed is asked for proofs after the others.
const PROOFS_LAST: Duration = Duration::from_secs(600);
/// How long a refuted claim is shown.
pub const REFUTED_SHOWN: Duration = Duration::from_secs(3600);
/// Longest `Retry-After` that is honoured.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);

/// Counts equal answers.
#[derive(Clone, Debug)]
pub struct Tally<T> {
    need: usize,
    answers: heapless::Vec<(usize, T), MAX_ENDPOINTS>,
}

impl<T: PartialEq> Tally<T> {
    /// A tally that needs `need` equal answers.
    pub const fn new(need: usize) -> Self {
        Self { need, answers: heapless::Vec::new() }
    }

    /// Adds the answer of `endpoint`; only its first one counts.
    pub fn add(&mut self, endpoint: usize, answer: T) {
        if self.answers.iter().all(|(e, _)| *e != endpoint) {
            // Cannot overflow: at most `MAX_ENDPOINTS` are asked.
            let _ = self.answers.push((endpoint, answer));
        }
    }

    /// The answer that enough endpoints gave.
    pub fn agreed(&self) -> Option<&T> {
        self.answers.iter().map(|(_, a)| a).find(|a| self.votes(a) >= self.need)
    }

    /// How many more equal answers are needed at best.
    pub fn missing(&self) -> usize {
        let best = self.answers.iter().map(|(_, a)| self.votes(a)).max().unwrap_or(0);
        self.need.saturating_sub(best)
    }

    /// The endpoints whose answer differs from the agreed one.
    pub fn dissenters(&self) -> impl Iterator<Item = usize> {
        let agreed = self.agreed();
        self.answers.iter().filter(move |(_, a)| agreed.is_some_and(|x| x != a)).map(|(e, _)| *e)
    }

    /// The answers so far.
    pub fn answers(&self) -> impl ExactSizeIterator<Item = &T> + Clone {
        self.answers.iter().map(|(_, a)| a)
    }

    /// Every answer with its endpoint.
    pub fn into_answers(self) -> heapless::Vec<(usize, T), MAX_ENDPOINTS> {
        self.answers
    }

    fn votes(&self, answer: &T) -> usize {
        self.answers.iter().filter(|(_, a)| a == answer).count()
    }
}

/// Whether an endpoint is on the configured chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnChain {
    /// Not asked yet.
    #[default]
    Unknown,
    /// It is.
    Yes,
    /// It is on this chain instead; only its chain id is requested.
    Other(u64),
}

/// State of one endpoint.
#[derive(Clone, Debug, Default)]
pub struct EndpointState {
    /// Moving average of the response time; `None`: no answer yet.
    pub latency: Option<Duration>,
    /// Failures in a row.
    pub failures: u32,
    /// Not asked before this time, by our backoff.
    pub not_before: Boot,
    /// Not asked before this time, by its own `Retry-After`, which no retry overrides.
    pub asked_to_wait: Boot,
    /// Its chain.
    pub chain: OnChain,
    /// Answers that a quorum contradicted.
    pub dissents: u64,
    /// Number of answers.
    pub answers: u64,
    /// Number of failures.
    pub errors: u64,
    /// Newest height it reported.
    pub height: u64,
    /// When it first reported that height.
    pub height_since: Boot,
    /// Newest final height it reported.
    pub final_height: u64,
    /// When it first reported that final height.
    pub final_since: Boot,
    /// Asked for proofs after the others until then.
    pub proofs_last_until: Boot,
    /// The last claim that a quorum refuted, and when.
    pub refuted: Option<(Boot, String)>,
}

impl EndpointState {
    fn due(&self) -> Boot {
        self.not_before.max(self.asked_to_wait)
    }
}

/// The endpoints of one chain.
#[derive(Clone, Debug, Default)]
pub struct Endpoints(heapless::Vec<EndpointState, MAX_ENDPOINTS>);

impl Endpoints {
    /// `n` endpoints not asked yet, at most [`MAX_ENDPOINTS`].
    pub fn new(n: usize) -> Self {
        Self((0..n.min(MAX_ENDPOINTS)).map(|_| EndpointState::default()).collect())
    }

    /// State of one endpoint.
    pub fn get(&self, i: usize) -> Option<&EndpointState> {
        self.0.get(i)
    }

    /// States of all endpoints.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &EndpointState> {
        self.0.iter()
    }

    /// The endpoints that may be asked now, best first: by failures, then by latency in steps of 20 ms, so that jitter
    /// does not change the order, then as configured.
    pub fn order(&self, now: Boot) -> heapless::Vec<usize, MAX_ENDPOINTS> {
        let mut order: heapless::Vec<usize, MAX_ENDPOINTS> =
            (0..self.0.len()).filter(|i| self.0.get(*i).is_some_and(|s| s.due() <= now)).collect();
        order.sort_by_key(|i| {
            self.0.get(*i).map(|s| (s.failures.min(8), s.latency.unwrap_or_default().as_millis() / 20, *i))
        });
        order
    }

    /// The endpoints in our own backoff, the next one due first: asked where those of [`Endpoints::order`] make no quorum,
    /// since after an outage others answer again. Not those that asked us to wait, or are on another chain.
    pub fn in_backoff(&self, now: Boot) -> heapless::Vec<usize, MAX_ENDPOINTS> {
        let waits = |s: &EndpointState| s.asked_to_wait <= now && s.not_before > now;
        let ours = |i: &usize| self.0.get(*i).is_some_and(|s| waits(s) && !matches!(s.chain, OnChain::Other(_)));
        let mut rest: heapless::Vec<usize, MAX_ENDPOINTS> = (0..self.0.len()).filter(ours).collect();
        rest.sort_by_key(|i| self.0.get(*i).map(|s| (s.not_before, *i)));
        rest
    }

    /// The earliest time that `quorum` endpoints may be asked, by what they asked for themselves.
    pub fn next(&self, quorum: usize) -> Option<Boot> {
        let mut times: heapless::Vec<Boot, MAX_ENDPOINTS> = self.0.iter().map(|s| s.asked_to_wait).collect();
        times.sort_unstable();
        times.get(quorum.saturating_sub(1)).copied()
    }

    /// Records its newest final height; returns how long it has been that.
    pub fn final_for(&mut self, i: usize, height: u64, now: Boot) -> Duration {
        let Some(s) = self.0.get_mut(i) else { return Duration::ZERO };
        if height > s.final_height {
            (s.final_height, s.final_since) = (height, now);
        }
        now.since(s.final_since)
    }

    /// Records a claim that a quorum refutes; whether it is the first within `REFUTED_SHOWN`.
    pub fn contradicted(&mut self, i: usize, claim: String, now: Boot) -> bool {
        let Some(s) = self.0.get_mut(i) else { return false };
        let known = s.refuted.as_ref().is_some_and(|(at, _)| now.since(*at) < REFUTED_SHOWN);
        s.dissents += 1;
        s.failures = s.failures.max(1);
        s.refuted = Some((now, claim));
        !known
    }

    /// Records that it refused a proof, or that its proof does not verify.
    pub fn proofs_failed(&mut self, i: usize, now: Boot) {
        if let Some(s) = self.0.get_mut(i) {
            s.proofs_last_until = now + PROOFS_LAST;
        }
    }

    /// Whether its last proof of late failed.
    pub fn proofs_fail(&self, i: usize, now: Boot) -> bool {
        self.0.get(i).is_some_and(|s| now < s.proofs_last_until)
    }

    /// Asked last until it answers again: its head is behind that of the others.
    pub fn lags(&mut self, i: usize) {
        if let Some(s) = self.0.get_mut(i) {
            s.failures = s.failures.max(1);
        }
    }

    /// Records an answer.
    pub fn answered(&mut self, i: usize, took: Duration) {
        let Some(s) = self.0.get_mut(i) else { return };
        s.failures = 0;
        s.answers += 1;
        // Exponential moving average over about eight answers.
        s.latency = Some(s.latency.map_or(took, |l| l.saturating_mul(7).saturating_add(took) / 8));
    }

    /// Records a failure; `retry_after` is the endpoint's own. `random` spreads the retries of many devices.
    pub fn failed(&mut self, i: usize, now: Boot, retry_after: Option<Duration>, random: u64) {
        let Some(s) = self.0.get_mut(i) else { return };
        s.failures = s.failures.saturating_add(1);
        s.errors += 1;
        let wait = BACKOFF_MIN.saturating_mul(1 << (s.failures - 1).min(16)).min(BACKOFF_MAX);
        // Between 0.5 and 1.5 times the backoff.
        let half = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(1);
        let own = wait / 2 + Duration::from_millis(random % half);
        s.not_before = now + own;
        if let Some(asked) = retry_after {
            s.asked_to_wait = now + asked.min(RETRY_AFTER_MAX);
        }
    }

    /// Records an answer that a quorum contradicted.
    pub fn dissented(&mut self, i: usize) {
        if let Some(s) = self.0.get_mut(i) {
            s.dissents += 1;
            // Asked last until it answers again, but not excluded: it may have been one block behind.
            s.failures = s.failures.max(1);
        }
    }

    /// Records a claim that a quorum refutes. No honest endpoint makes one: it is not asked for `REFUTED_WAIT`.
    pub fn refuted(&mut self, i: usize, now: Boot) {
        if let Some(s) = self.0.get_mut(i) {
            s.failures = s.failures.saturating_add(1);
            s.errors += 1;
            s.asked_to_wait = now + REFUTED_WAIT;
        }
    }

    /// Records the reported chain id. On another chain it is asked again after an hour: an operator may correct it.
    pub fn on_chain(&mut self, i: usize, reported: u64, wanted: u64, now: Boot) -> bool {
        let Some(s) = self.0.get_mut(i) else { return false };
        s.chain = if reported == wanted { OnChain::Yes } else { OnChain::Other(reported) };
        if reported != wanted {
            s.errors += 1;
            s.not_before = now + RETRY_AFTER_MAX;
        }
        reported == wanted
    }

    /// Records its newest height.
    pub fn at_height(&mut self, i: usize, height: u64, now: Boot) {
        if let Some(s) = self.0.get_mut(i)
            && height > s.height
        {
            (s.height, s.height_since) = (height, now);
        }
    }

    /// How long it has reported nothing above `height`.
    pub fn stuck_for(&self, i: usize, height: u64, now: Boot) -> Duration {
        self.0
            .get(i)
            .filter(|s| s.height > 0 && height <= s.height)
            .map_or(Duration::ZERO, |s| now.since(s.height_since))
    }

    /// Ends our backoff of all endpoints on the configured chain, because the question failed, not the endpoints.
    pub fn pardon(&mut self) {
        for s in self.0.iter_mut().filter(|s| !matches!(s.chain, OnChain::Other(_))) {
            s.not_before = Boot::default();
        }
    }

    /// Ends our backoff of all endpoints at an operator's request, also of those on another chain: it may be corrected.
    pub fn retry_now(&mut self) {
        for s in &mut self.0 {
            s.not_before = Boot::default();
        }
    }

    /// Whether its chain id must be requested.
    pub fn must_report_chain(&self, i: usize) -> bool {
        self.0.get(i).is_none_or(|s| s.chain != OnChain::Yes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn two_of_three_outvote_a_false_answer() {
        let mut t = Tally::new(2);
        t.add(0, "false");
        t.add(1, "true");
        assert_eq!((t.agreed(), t.missing()), (None, 1));
        t.add(0, "true");
        assert_eq!(t.agreed(), None, "one endpoint has one vote");
        t.add(2, "true");
        assert_eq!(t.agreed(), Some(&"true"));
        assert_eq!(t.dissenters().collect::<Vec<_>>(), [0]);
    }

    #[test]
    fn failed_endpoint_is_asked_after_the_others() {
        let mut e = Endpoints::new(3);
        let now = Boot::from_secs(100);
        e.answered(0, Duration::from_millis(200));
        e.answered(1, Duration::from_millis(50));
        e.answered(2, Duration::from_millis(52));
        assert_eq!(e.order(now).as_slice(), [1, 2, 0]);
        e.failed(1, now, Some(Duration::from_secs(30)), 0);
        assert_eq!(e.order(now).as_slice(), [2, 0]);
        assert_eq!(e.order(now + Duration::from_secs(29)).as_slice(), [2, 0], "Retry-After is kept");
        assert_eq!(e.order(now + Duration::from_secs(31)).as_slice(), [2, 0, 1]);
        e.failed(0, now, Some(Duration::MAX), 0);
        assert!(e.order(now + RETRY_AFTER_MAX).contains(&0), "limited to RETRY_AFTER_MAX");
        e.pardon();
        e.retry_now();
        assert_eq!(e.order(now).as_slice(), [2], "no retry overrides Retry-After");
        assert!(!e.on_chain(2, 1, 8453, now));
        assert_eq!(e.get(2).unwrap().chain, OnChain::Other(1));
        assert!(e.order(now).is_empty());
        e.pardon();
        assert!(e.order(now).is_empty(), "an endpoint on another chain stays excluded");
        e.retry_now();
        assert_eq!(e.order(now).as_slice(), [2], "an operator may have corrected it");
    }

    #[test]
    fn endpoint_without_new_heights_is_stuck() {
        let mut e = Endpoints::new(1);
        let at = Boot::from_secs;
        assert_eq!(e.stuck_for(0, 7, at(10)), Duration::ZERO, "no height reported yet");
        e.at_height(0, 7, at(10));
        e.at_height(0, 7, at(20));
        e.at_height(0, 6, at(30));
        assert_eq!(e.stuck_for(0, 7, at(40)), Duration::from_secs(30));
        assert_eq!(e.stuck_for(0, 8, at(40)), Duration::ZERO);
        e.at_height(0, 8, at(40));
        assert_eq!(e.stuck_for(0, 8, at(45)), Duration::from_secs(5));
    }

    proptest! {
        #[test]
        fn backoff_stays_within_its_bounds(fails in 1u32..200, random in any::<u64>()) {
            let mut e = Endpoints::new(1);
            let now = Boot::from_secs(1);
            for _ in 0..fails {
                e.failed(0, now, None, random);
                let wait = e.get(0).unwrap().not_before.since(now);
                prop_assert!(wait >= BACKOFF_MIN / 2 && wait <= BACKOFF_MAX * 3 / 2, "{wait:?}");
            }
            e.answered(0, Duration::ZERO);
            prop_assert_eq!(e.get(0).unwrap().failures, 0);
        }
    }
}
