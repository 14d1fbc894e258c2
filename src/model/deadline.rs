//! The next deadline of a state machine, with its reason.
use crate::time::Boot;

/// The next moment at which a machine has to be called, with the reason `R` of that machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline<R> {
    /// The moment.
    pub at: Boot,
    /// What happens then.
    pub reason: R,
}

impl<R> Deadline<R> {
    /// A deadline at `at`.
    pub const fn new(at: Boot, reason: R) -> Self {
        Self { at, reason }
    }

    /// The earlier of the two; `self` if both are at the same moment.
    #[must_use]
    pub fn min(self, other: Self) -> Self {
        if other.at < self.at { other } else { self }
    }
}
