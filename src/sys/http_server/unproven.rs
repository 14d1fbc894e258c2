//! What sources may cost that have not proved that they may make requests: a signature covers the body, so that a forged body
//! is read before it is refused. Each source has one long body at a time, and none for a while after one that proved nothing.
use crate::clock::{Clock as _, SystemClock};
use spoke_api::http::limit::network;
use spoke_model::time::Boot;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Sources remembered; the one whose time ends first makes room.
const MAX_SOURCES: usize = 1024;
/// How long a source has no long body after one that was forged, broken off or too slow.
const PENALTY: Duration = Duration::from_secs(60);
/// When a body that is under way counts as ended at the latest.
const LONGEST: Duration = Duration::from_secs(300);

/// Until when each source has no long body.
#[derive(Debug, Default)]
pub(super) struct Unproven(BTreeMap<IpAddr, Boot>);

impl Unproven {
    fn take(&mut self, source: IpAddr, now: Boot) -> Result<(), Duration> {
        if let Some(until) = self.0.get(&source).filter(|until| **until > now) {
            return Err(until.since(now).min(PENALTY));
        }
        self.0.retain(|_, until| *until > now);
        if self.0.len() >= MAX_SOURCES
            && let Some(first) = self.0.iter().min_by_key(|(_, until)| **until).map(|(source, _)| *source)
        {
            self.0.remove(&first);
        }
        self.0.insert(source, now + LONGEST);
        Ok(())
    }

    fn end(&mut self, source: IpAddr, now: Boot, authentic: bool) {
        match authentic {
            true => drop(self.0.remove(&source)),
            false => drop(self.0.insert(source, now + PENALTY)),
        }
    }
}

/// A source's long body; dropped when it has been answered or has broken off.
pub(super) struct Turn {
    all: Arc<Mutex<Unproven>>,
    source: IpAddr,
    authentic: bool,
}

impl Turn {
    /// `Err`: time until the source may have one.
    pub(super) fn take(all: &Arc<Mutex<Unproven>>, source: IpAddr) -> Result<Self, Duration> {
        let source = network(source);
        all.lock().unwrap_or_else(PoisonError::into_inner).take(source, SystemClock.now())?;
        Ok(Self { all: all.clone(), source, authentic: false })
    }

    /// The source has proved itself with it.
    pub(super) fn was_authentic(mut self) {
        self.authentic = true;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.end(self.source, SystemClock.now(), self.authentic);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(n: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, n])
    }

    #[test]
    fn source_has_one_long_body_at_a_time() {
        let (mut all, at) = (Unproven::default(), Boot::from_secs);
        assert_eq!(all.take(source(1), at(10)), Ok(()));
        assert!(all.take(source(1), at(11)).is_err());
        assert_eq!(all.take(source(2), at(11)), Ok(()), "others are not held up");
        all.end(source(1), at(12), true);
        assert_eq!(all.take(source(1), at(12)), Ok(()));
    }

    #[test]
    fn forged_long_body_costs_its_source_a_minute() {
        let (mut all, at) = (Unproven::default(), Boot::from_secs);
        assert_eq!(all.take(source(1), at(10)), Ok(()));
        all.end(source(1), at(12), false);
        assert_eq!(all.take(source(1), at(13)), Err(Duration::from_secs(59)));
        assert_eq!(all.take(source(1), at(72)), Ok(()));
    }

    #[test]
    fn sources_remembered_are_bounded() {
        let mut all = Unproven::default();
        for n in 0..5000u32 {
            let _ = all.take(IpAddr::from(n.to_be_bytes()), Boot::from_secs(10 + u64::from(n) / 1000));
        }
        assert_eq!(all.0.len(), MAX_SOURCES);
    }
}
