//! Which reported events count: one endpoint may cause the verification of the grants that an event names; an event
//! that concerns every grant counts only as long as no quorum denies it.
use super::jsonrpc::{BlockRef, GrantEvent, Subject};
use std::collections::{BTreeMap, BTreeSet};

/// The events reported by one endpoint.
#[derive(Debug)]
pub(crate) struct Reported {
    /// The endpoint.
    pub(crate) endpoint: usize,
    /// Its newest height: it does not deny an event above.
    pub(crate) head: u64,
    /// Its events.
    pub(crate) events: Vec<GrantEvent>,
}

/// The events that count, and the endpoints whose events a quorum denies.
#[derive(Debug, Default)]
pub(crate) struct Confirmed {
    pub(crate) events: Vec<GrantEvent>,
    pub(crate) refuted: BTreeSet<usize>,
}

/// The events of `reports` that count. `head`: a height that a quorum has; an event for every grant above it is read
/// again once a quorum has its block.
pub(crate) fn confirmed(reports: Vec<Reported>, head: u64, quorum: usize) -> Confirmed {
    // For each block with an event for every grant, the endpoints that report one.
    let mut reporters: BTreeMap<BlockRef, BTreeSet<usize>> = BTreeMap::new();
    for report in &reports {
        for event in report.events.iter().filter(|e| e.subject == Subject::Anyone) {
            reporters.entry(event.block).or_default().insert(report.endpoint);
        }
    }
    let heads: Vec<(usize, u64)> = reports.iter().map(|r| (r.endpoint, r.head)).collect();
    let denied = |block: &BlockRef, by: &BTreeSet<usize>| {
        heads.iter().filter(|(i, head)| *head >= block.number && !by.contains(i)).count() >= quorum
    };
    let mut refuted = BTreeSet::new();
    reporters.retain(|block, by| {
        let denied = denied(block, by);
        if denied {
            refuted.extend(by.iter().copied());
        }
        !denied && block.number <= head
    });
    let counts = |e: &GrantEvent| e.subject != Subject::Anyone || reporters.contains_key(&e.block);
    let events = reports.into_iter().flat_map(|r| r.events).filter(counts).collect();
    Confirmed { events, refuted }
}

/// Whether one of the endpoints reports an event for every grant that another denies.
pub(crate) fn disputed<'a>(reports: impl Iterator<Item = (u64, &'a [GrantEvent])> + Clone) -> bool {
    let blocks = |events: &'a [GrantEvent]| {
        events.iter().filter(|e| e.subject == Subject::Anyone).map(|e| e.block).collect::<BTreeSet<_>>()
    };
    let all: BTreeSet<BlockRef> = reports.clone().flat_map(|(_, events)| blocks(events)).collect();
    if all.is_empty() {
        return false;
    }
    reports.into_iter().any(|(head, events)| {
        let own = blocks(events);
        all.iter().any(|block| block.number <= head && !own.contains(block))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloy_primitives::B256;

    fn event(number: u64, subject: Subject) -> GrantEvent {
        GrantEvent { block: BlockRef { number, hash: B256::repeat_byte(1) }, subject }
    }

    fn report(endpoint: usize, head: u64, events: Vec<GrantEvent>) -> Reported {
        Reported { endpoint, head, events }
    }

    #[test]
    fn event_denied_by_a_quorum_does_not_count() {
        let (anyone, named) = (event(9, Subject::Anyone), event(9, Subject::Owner(alloy_primitives::Address::ZERO)));
        let both = vec![anyone.clone(), named.clone()];
        let c = confirmed(vec![report(0, 10, both.clone()), report(1, 10, vec![]), report(2, 10, vec![])], 10, 2);
        assert_eq!((c.events, c.refuted), (vec![named.clone()], [0].into()));
        // One of the others has not reached the block.
        let c = confirmed(vec![report(0, 10, both.clone()), report(1, 10, vec![]), report(2, 8, vec![])], 10, 2);
        assert_eq!((c.events.len(), c.refuted.len()), (2, 0));
        // No quorum has the block yet.
        let c = confirmed(vec![report(0, 10, both.clone()), report(1, 8, vec![])], 8, 2);
        assert_eq!((c.events, c.refuted.len()), (vec![named], 0));
        let two = [(10, both.as_slice()), (10, &[])];
        assert!(disputed(two.into_iter()) && !disputed([(10, both.as_slice()), (8, &[])].into_iter()));
    }
}
