//! `[clock]`: how often the time is stored, which bounds how far the clock is behind after a power cut.
use super::reader::Table;
use serde::Serialize;
use spoke_model::duration::duration_text;
use std::time::Duration;

/// `[clock]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Clock {
    /// Period of time stamps on disk.
    #[serde(serialize_with = "duration_text")]
    pub stamp_every: Duration,
}

impl Clock {
    pub(super) fn read(t: &mut Table<'_>) -> Self {
        let hour = Duration::from_secs(3600);
        Self { stamp_every: t.duration("stamp_every", hour..=hour * 24 * 7).unwrap_or(hour * 6) }
    }
}
