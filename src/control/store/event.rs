//! Events: what changed, stored in the transaction of the change and kept for a day, so that a client that was away goes on
//! where it was, at whatever control plane.
use super::error::StoreError;
use super::event_entry::EventEntry;
use super::row::Row;
use super::sql::{Store, Tx};
use super::wake::EVENTS;
use tokio::sync::watch;

/// How long events are kept, in milliseconds.
const KEEP_MS: i64 = 86_400_000;

/// Events kept at most.
const MAX_KEPT: i64 = 100_000;

/// Events read at a time.
const PAGE: i64 = 500;

/// An event.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Ascending in the order of the changes, without gaps.
    pub id: i64,
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// `audit`, `node` or `drift`.
    pub kind: String,
    /// The kind of entity.
    pub entity_type: String,
    /// Which one.
    pub entity_id: String,
    /// What changed.
    pub details: serde_json::Value,
}

impl Event {
    fn read(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: row.int("id")?,
            at_ms: row.count("at_ms")?,
            kind: row.text("kind")?,
            entity_type: row.text("entity_type")?,
            entity_id: row.text("entity_id")?,
            details: row.json("details")?,
        })
    }
}

/// What happened after an event.
#[derive(Clone, Debug, PartialEq)]
pub enum EventsAfter {
    /// The next events, in their order.
    Next(Vec<Event>),
    /// Some are not kept any more, or the event is of another database: what the client knows may be out of date.
    Lost {
        /// The newest event.
        last: i64,
    },
}

impl Store {
    /// Changes with every event, also of other processes.
    pub fn events(&self) -> watch::Receiver<u64> {
        self.wakes.events()
    }
}

impl Tx {
    /// Adds an event, which the commit stores.
    pub fn event(&mut self, event: EventEntry) {
        self.events.push(event);
    }

    /// Stores the events of this transaction, as its last statements: from here on other writers of events wait.
    pub(super) async fn store_events(&mut self) -> Result<(), StoreError> {
        let events = std::mem::take(&mut self.events);
        if events.is_empty() {
            return Ok(());
        }
        let count = i64::try_from(events.len()).unwrap_or(i64::MAX);
        let sql = "UPDATE event_head SET last = last + $1 WHERE name = 'event' RETURNING last";
        let last = self.row(sql, &[count.into()]).await?.ok_or(StoreError::Unreadable("event_head"))?.int("last")?;
        for (event, id) in events.into_iter().zip(last.saturating_sub(count).saturating_add(1)..) {
            let sql = "INSERT INTO event (id, at_ms, kind, entity_type, entity_id, details)
                VALUES ($1, $2, $3, $4, $5, $6)";
            let EventEntry { at_ms, kind, entity_type, entity_id, details } = event;
            let details = details.to_string();
            let values = [id.into(), at_ms.into(), kind.into(), entity_type.into(), entity_id.into(), details.into()];
            self.run(sql, &values).await?;
        }
        self.woken.insert(EVENTS.to_owned());
        Ok(())
    }

    /// The number of the newest event.
    pub async fn last_event(&mut self) -> Result<i64, StoreError> {
        let row = self.row("SELECT last FROM event_head WHERE name = 'event'", &[]).await?;
        row.ok_or(StoreError::Unreadable("event_head"))?.int("last")
    }

    /// The next events after the one with this number.
    pub async fn events_after(&mut self, after: i64) -> Result<EventsAfter, StoreError> {
        let last = self.last_event().await?;
        if after == last {
            return Ok(EventsAfter::Next(Vec::new()));
        }
        let sql = "SELECT * FROM event WHERE id > $1 ORDER BY id LIMIT $2";
        let events = self.rows(sql, &[after.into(), PAGE.into()]).await?;
        let events = events.iter().map(Event::read).collect::<Result<Vec<_>, _>>()?;
        match events.first() {
            Some(first) if after >= 0 && first.id == after.saturating_add(1) => Ok(EventsAfter::Next(events)),
            Some(_) | None => Ok(EventsAfter::Lost { last }),
        }
    }

    /// Deletes events that are too old or too many.
    pub(super) async fn prune_events(&mut self, now_ms: i64) -> Result<(), StoreError> {
        let last = self.last_event().await?;
        // From the oldest on, so that the rest has no gap; times of the future are of a clock that was set back since.
        let sql = "SELECT MAX(id) AS id FROM event WHERE at_ms < $1 OR at_ms > $2";
        let ends = [now_ms.saturating_sub(KEEP_MS).into(), now_ms.saturating_add(KEEP_MS).into()];
        let old = self.row(sql, &ends).await?.map_or(Ok(None), |r| r.opt_int("id"))?.unwrap_or(0);
        let until = old.max(last.saturating_sub(MAX_KEPT));
        self.run("DELETE FROM event WHERE id <= $1", &[until.into()]).await.map(drop)
    }
}
