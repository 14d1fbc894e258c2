//! When a download that no person started may begin: the node's turn in a rollout, then the window.
//!
//! Neither is a reason to stay without an update for ever. A clock that is not trusted is not read: the turn is then counted
//! from when the wish was received, and the window is waited for [`PATIENCE`] at most.
use spoke_config::update::Window;
use spoke_model::release::Rollout;
use spoke_model::time::{Boot, Wall};
use std::time::Duration;

/// How long a board without a trusted clock waits for one before it ignores the window: each time of day has passed once.
pub const PATIENCE: Duration = Duration::from_secs(86_400);

/// The clocks.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// Boot clock.
    pub now: Boot,
    /// Wall clock; `None`: not trusted.
    pub wall: Option<Wall>,
}

/// The decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// Fetch it; it must end within this time, and what arrived until then is kept.
    Fetch(Option<Duration>),
    /// Not yet, for this reason.
    Wait(String),
}

/// Decides about a download that is due since `due` (boot clock), apart from its turn in `rollout`.
pub fn start(rollout: Rollout, due: Boot, window: Option<Window>, at: Moment) -> Start {
    let waited = at.now.since(due);
    let turn = match at.wall {
        Some(wall) => wall.secs() < rollout.not_before,
        None => waited < Duration::from_secs(rollout.wait),
    };
    if turn {
        return Start::Wait(match at.wall {
            Some(_) => format!("its turn in the rollout is at {}", Wall(rollout.not_before)),
            None => format!("its turn in the rollout is {} s after the wish was received", rollout.wait),
        });
    }
    let Some(window) = window else { return Start::Fetch(None) };
    match at.wall {
        Some(wall) => window
            .left(wall)
            .map_or_else(|| Start::Wait(format!("it waits for the window {window}")), |left| Start::Fetch(Some(left))),
        None if waited.saturating_sub(Duration::from_secs(rollout.wait)) >= PATIENCE => Start::Fetch(None),
        None => Start::Wait(format!(
            "it waits for the window {window} and the clock is not trusted: without one it is fetched after 24 hours"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NIGHT: &str = "22:00-02:00";
    /// 2026-01-01T00:00:00Z.
    const MIDNIGHT: u64 = 1_767_225_600;
    const TURN: Rollout = Rollout { renewed: 0, not_before: MIDNIGHT, wait: 600 };

    fn decide(rollout: Rollout, window: &str, waited: u64, wall: Option<u64>) -> Start {
        let window = Some(window).filter(|w| !w.is_empty()).map(|w| w.parse().unwrap());
        let at = Moment { now: Boot::from_secs(100 + waited), wall: wall.map(Wall) };
        start(rollout, Boot::from_secs(100), window, at)
    }

    #[test]
    fn turn_in_the_rollout_is_waited_for() {
        assert!(matches!(decide(TURN, "", 0, Some(MIDNIGHT - 1)), Start::Wait(why) if why.contains("2026-01-01")));
        assert_eq!(decide(TURN, "", 0, Some(MIDNIGHT)), Start::Fetch(None));
        // By the boot clock where the wall clock is not trusted, also if the rollout began long ago.
        assert!(matches!(decide(TURN, "", 599, None), Start::Wait(why) if why.contains("600 s")));
        assert_eq!(decide(TURN, "", 600, None), Start::Fetch(None));
        assert_eq!(decide(Rollout::default(), "", 0, None), Start::Fetch(None));
    }

    #[test]
    fn download_ends_with_its_window() {
        let fetch = |left| Start::Fetch(Some(Duration::from_secs(left)));
        let night = |wall| decide(Rollout::default(), NIGHT, 0, Some(wall));
        assert!(matches!(night(MIDNIGHT - 7201), Start::Wait(why) if why.contains(NIGHT)));
        assert_eq!(night(MIDNIGHT - 7200), fetch(4 * 3600));
        assert_eq!(night(MIDNIGHT + 7199), fetch(1));
        assert!(matches!(night(MIDNIGHT + 7200), Start::Wait(_)));
        // The turn comes first.
        assert!(matches!(decide(TURN, NIGHT, 0, Some(MIDNIGHT - 60)), Start::Wait(why) if why.contains("turn")));
    }

    #[test]
    fn untrusted_clock_delays_a_download_by_a_day_at_most() {
        let untrusted = |waited| decide(TURN, NIGHT, waited, None);
        assert!(matches!(untrusted(600), Start::Wait(why) if why.contains("not trusted")));
        assert!(matches!(untrusted(600 + 86_399), Start::Wait(_)));
        assert_eq!(untrusted(600 + 86_400), Start::Fetch(None));
    }
}
