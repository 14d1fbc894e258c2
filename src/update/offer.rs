//! Whether a verified bundle is installed: never an older release unless a person asks for it.
use super::manifest::Manifest;
use super::record::UpdateRecord;
use spoke_model::time::Wall;

/// Who asks for the installation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker {
    /// A person at the device.
    Person {
        /// An older release than the running one is wanted.
        downgrade: bool,
    },
    /// The control plane, by version.
    Control {
        /// A person renewed the wish after the version was given up here.
        renewed: bool,
    },
    /// The configured source, not the control plane.
    Source,
}

/// The decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Offer {
    /// Install it.
    Install,
    /// It runs already.
    Runs,
    /// Do not, for this reason.
    Refused(String),
}

/// The time that an expiry is judged by: that of a trusted clock, else the latest that has certainly passed (`floor`: the build,
/// the last time that was trusted). A clock that runs ahead unconfirmed holds no release back, and one that is behind lets an
/// expired one in only as long as neither a newer image nor a trusted clock was seen.
pub fn certain_time(trusted: Option<Wall>, floor: Wall) -> Wall {
    trusted.unwrap_or(floor).max(floor)
}

/// Decides about a bundle. `running`: version and sequence of the running system, 0 if unknown; `now`: [`certain_time`].
pub fn decide_offer(
    manifest: &Manifest,
    (running, sequence): (&str, u64),
    record: &UpdateRecord,
    now: Wall,
    asker: Asker,
) -> Offer {
    let version = &manifest.version;
    let older = manifest.sequence < sequence;
    let refused = |why: String| Offer::Refused(why);
    match asker {
        Asker::Person { downgrade } => {
            if older && !downgrade {
                return refused(format!(
                    "{version} (release {}) is older than {running} (release {sequence}), which runs: add --downgrade to install it",
                    manifest.sequence
                ));
            }
            return Offer::Install;
        }
        Asker::Control { .. } | Asker::Source => {}
    }
    if version == running {
        return Offer::Runs;
    }
    if record.is_rejected(version) && asker != (Asker::Control { renewed: true }) {
        return refused(format!("{version} was given up here: spoke update retry tries it again"));
    }
    if older || (asker == Asker::Source && manifest.sequence == sequence) {
        return refused(format!(
            "{version} (release {}) is not newer than {running} (release {sequence}), which runs: spoke update install --downgrade installs it",
            manifest.sequence
        ));
    }
    if manifest.expires.is_some_and(|expires| now.secs() > expires) {
        return refused(format!(
            "{version} (release {}) has expired: the source serves an outdated bundle, or the clock is wrong",
            manifest.sequence
        ));
    }
    Offer::Install
}

#[cfg(test)]
mod tests {
    use super::super::manifest::Part;
    use super::super::slot::Slot;
    use super::*;

    const CONTROL: Asker = Asker::Control { renewed: false };
    const PERSON: Asker = Asker::Person { downgrade: false };

    fn release(sequence: u64) -> Manifest {
        let part = Part { size: 1, sha256: String::new() };
        Manifest {
            board: "x".into(),
            version: format!("1.{sequence}"),
            sequence,
            floor: 0,
            expires: Some(1000),
            root: part.clone(),
            kernel: part,
        }
    }

    fn decide(manifest: &Manifest, running: u64, now: u64, asker: Asker) -> Offer {
        let record = UpdateRecord::new("x".into());
        decide_offer(manifest, (&format!("1.{running}"), running), &record, Wall(now), asker)
    }

    #[test]
    fn older_release_is_never_installed_unattended() {
        for asker in [CONTROL, Asker::Source] {
            assert_eq!(decide(&release(6), 5, 0, asker), Offer::Install);
            assert_eq!(decide(&release(5), 5, 0, asker), Offer::Runs);
            assert!(matches!(decide(&release(4), 5, 0, asker), Offer::Refused(_)), "{asker:?}");
        }
        let rebuilt = Manifest { version: "1.5b".into(), ..release(5) };
        assert!(matches!(decide(&rebuilt, 5, 0, Asker::Source), Offer::Refused(_)));
        assert_eq!(decide(&rebuilt, 5, 0, CONTROL), Offer::Install);
        // Unknown: an image of before.
        assert_eq!(decide(&release(4), 0, 0, Asker::Source), Offer::Install);
    }

    #[test]
    fn person_installs_an_older_release_with_downgrade_only() {
        let Offer::Refused(why) = decide(&release(4), 5, 0, PERSON) else { panic!("installed") };
        assert!(why.contains("--downgrade") && why.contains("1.4") && why.contains("1.5"), "{why}");
        assert_eq!(decide(&release(4), 5, 0, Asker::Person { downgrade: true }), Offer::Install);
        assert_eq!(decide(&release(5), 5, 0, PERSON), Offer::Install, "the same one again, as a repair");
    }

    #[test]
    fn expired_release_is_held_back_and_wrong_clocks_are_harmless() {
        assert_eq!(decide(&release(6), 5, 1000, Asker::Source), Offer::Install);
        let Offer::Refused(why) = decide(&release(6), 5, 1001, Asker::Source) else { panic!("installed") };
        assert!(why.contains("expired") && why.contains("clock"), "{why}");
        assert_eq!(decide(&release(6), 5, 1001, PERSON), Offer::Install);
        let without = Manifest { expires: None, ..release(6) };
        assert_eq!(decide(&without, 5, u64::MAX, Asker::Source), Offer::Install);
    }

    #[test]
    fn untrusted_clock_neither_holds_back_nor_accepts_for_ever() {
        let at = |trusted: Option<u64>, floor| {
            decide(&release(6), 5, certain_time(trusted.map(Wall), Wall(floor)).secs(), Asker::Source)
        };
        // It expires at 1000.
        assert_eq!(at(None, 500), Offer::Install, "whatever the clock shows");
        assert!(matches!(at(None, 1001), Offer::Refused(_)), "that time has passed");
        assert!(matches!(at(Some(1001), 500), Offer::Refused(_)));
        assert!(matches!(at(Some(900), 1001), Offer::Refused(_)), "a trusted time before the floor");
    }

    #[test]
    fn rejected_release_needs_a_person() {
        let mut record = UpdateRecord::new("x".into());
        record.roll_back(Slot::A, "1.6");
        let decide = |asker| decide_offer(&release(6), ("1.5", 5), &record, Wall(0), asker);
        assert!(matches!(decide(Asker::Source), Offer::Refused(_)));
        assert!(matches!(decide(CONTROL), Offer::Refused(_)));
        assert_eq!(decide(Asker::Control { renewed: true }), Offer::Install);
        assert_eq!(decide(PERSON), Offer::Install);
    }
}
