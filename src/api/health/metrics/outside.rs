//! The hub, the control plane, updates, the machine.
use super::Scrape;
use crate::exposition::{Exposition, Kind, flag, number};
use spoke_enroll::wire::Outcome;
use spoke_update::slot::Slot;
use spoke_uplink::ladder::Rung;
use spoke_uplink::status::UplinkStatus;
use std::net::SocketAddr;

impl Scrape<'_> {
    pub(super) fn uplink(&self, out: &mut Exposition) {
        let components = &self.snapshot.components;
        let Some(u) = &components.uplink else { return };
        let none = UplinkStatus::default();
        let session = components.session.as_deref().unwrap_or(&none);
        let now = self.at.now;
        let hub = u.hub.as_deref().unwrap_or("");
        let endpoint = session.endpoint.as_ref().map(SocketAddr::to_string).unwrap_or_default();
        out.family(Kind::Gauge, "spoke_uplink_info", "The hub in use and its endpoint");
        out.sample(&[("hub", hub), ("endpoint", &endpoint)], 1.0);
        let backoff = u.backoff.map_or(0.0, |b| b.as_secs_f64());
        for (kind, name, help, value) in [
            (Kind::Gauge, "spoke_uplink_connected", "1 if a tunnel to a hub is up", flag(u.connected)),
            (Kind::Gauge, "spoke_uplink_hub_answers", "1 if the hub answers through the tunnel", flag(u.hub_answers)),
            (Kind::Counter, "spoke_uplink_attempts_total", "Attempts to connect to a hub", number(u.attempts)),
            (Kind::Counter, "spoke_uplink_sessions_total", "Times a tunnel came up", number(session.sessions)),
            (
                Kind::Counter,
                "spoke_uplink_failovers_total",
                "Times a tunnel came up to another hub than the one before",
                number(session.failovers),
            ),
            (
                Kind::Counter,
                "spoke_uplink_echo_requests_total",
                "Echo requests to the hub in use, through the tunnel",
                number(session.echo_requests),
            ),
            (
                Kind::Counter,
                "spoke_uplink_echo_replies_total",
                "Echo replies of that hub",
                number(session.echo_replies),
            ),
            (Kind::Gauge, "spoke_uplink_backoff_seconds", "Wait before the next attempt; 0: none", backoff),
        ] {
            out.single(kind, name, help, value);
        }
        for (name, help, value) in [
            (
                "spoke_uplink_handshake_age_seconds",
                "Time since the newest handshake with the hub",
                u.last_handshake.map(|at| now.since(at)),
            ),
            (
                "spoke_uplink_connected_seconds",
                "Time since the tunnel came up; absent while it is down",
                u.connected_since.map(|at| now.since(at)),
            ),
            ("spoke_uplink_echo_rtt_seconds", "Round trip of the last answered echo request", session.rtt),
        ] {
            if let Some(value) = value {
                out.single(Kind::Gauge, name, help, value.as_secs_f64());
            }
        }
        let rungs = Rung::ALL.map(|r| (r.as_str(), number(session.rungs.get(&r).copied().unwrap_or(0))));
        let help = "Steps of the recovery ladder that were taken";
        out.by(Kind::Counter, "spoke_uplink_rungs_total", help, "rung", &rungs);
    }

    pub(super) fn control(&self, out: &mut Exposition) {
        let Some(c) = &self.snapshot.components.control else { return };
        let enrolled = "1 if the node is enrolled at a control plane";
        out.single(Kind::Gauge, "spoke_control_enrolled", enrolled, flag(c.enrolled));
        if let Some(at) = c.last_answer {
            let age = self.at.now.since(at).as_secs_f64();
            let help = "Time since the control plane last answered; absent: not since the start";
            out.single(Kind::Gauge, "spoke_control_contact_age_seconds", help, age);
        }
        let help = "State of the control plane that is in force; 0: none";
        out.single(Kind::Gauge, "spoke_control_state", help, number(c.generation));
        let help = "1 if the state in force is not on disk";
        out.single(Kind::Gauge, "spoke_control_state_unsaved", help, flag(c.unsaved.is_some()));
        let outcomes = [Outcome::Applied, Outcome::Trial, Outcome::Reverted, Outcome::Refused];
        let outcomes = outcomes.map(|o| (o.as_str(), flag(c.outcome == Some(o))));
        let help = "1 for what became of the newest state, 0 for the others";
        out.by(Kind::Gauge, "spoke_control_state_outcome", help, "outcome", &outcomes);
    }

    pub(super) fn update(&self, out: &mut Exposition) {
        let Some(notice) = &self.snapshot.components.update else { return };
        let trial = notice.trial.as_ref().map_or("", |t| t.version.as_str());
        out.family(Kind::Gauge, "spoke_update_info", "The running slot, its version, and the version on trial");
        let slot = match notice.slot {
            Slot::A => "a",
            Slot::B => "b",
        };
        out.sample(&[("slot", slot), ("version", &notice.version), ("trial", trial)], 1.0);
        let on_trial = flag(notice.trial.is_some());
        out.single(Kind::Gauge, "spoke_update_trial", "1 while a version is on trial", on_trial);
        let held = flag(notice.held.is_some());
        out.single(Kind::Gauge, "spoke_update_held", "1 if the wanted release is not installed", held);
    }

    pub(super) fn machine(&self, out: &mut Exposition) {
        let components = &self.snapshot.components;
        if let Some((size, available)) = components.space {
            let help = "Size of the file system that holds the state directory";
            out.single(Kind::Gauge, "spoke_state_size_bytes", help, number(size));
            let help = "Free bytes of that file system";
            out.single(Kind::Gauge, "spoke_state_available_bytes", help, number(available));
        }
        let expiries: Vec<_> = components.certificates.iter().map(|(name, at)| (*name, number(at.secs()))).collect();
        let help = "End of a certificate's validity in seconds since 1970";
        out.by(Kind::Gauge, "spoke_certificate_expiry_timestamp_seconds", help, "certificate", &expiries);
        let Some(process) = &self.process else { return };
        let help = "Files and records that the process wrote to disk";
        out.single(Kind::Counter, "spoke_disk_writes_total", help, number(process.writes));
        let help = "Bytes of files and records that the process wrote to disk";
        out.single(Kind::Counter, "spoke_disk_written_bytes_total", help, number(process.written_bytes));
        process.write(out, self.at.started);
    }
}
