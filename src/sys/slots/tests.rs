//! Both boot loaders pass the same story on plain files.
use super::*;

fn device(loader: Loader) -> (tempfile::TempDir, DiskSlots) {
    let dir = tempfile::tempdir().unwrap();
    let (boot, devices) = (dir.path().join("boot"), dir.path().join("dev"));
    fs::create_dir_all(boot.join("EFI/Linux")).unwrap();
    fs::create_dir_all(&devices).unwrap();
    let first = if loader == Loader::UBoot { "spoke-a.efi" } else { "spoke-000001-a.efi" };
    fs::write(boot.join("EFI/Linux").join(first), b"kernel a").unwrap();
    fs::write(devices.join("root_b"), vec![0; 1000]).unwrap();
    fs::write(devices.join("bootenv"), vec![0; 0x4_0000]).unwrap();
    let slots = DiskSlots::at(loader, Slot::A, boot, devices, false);
    (dir, slots)
}

/// What the boot loader would start.
fn next(slots: &DiskSlots) -> Slot {
    match slots.loader {
        Loader::UBoot => slots.stored().unwrap().env.next(),
        Loader::SystemdBoot => slot::next(&slots.entries().unwrap()).unwrap().slot,
    }
}

fn install(slots: &mut DiskSlots) {
    slots.vacate().unwrap();
    slots.write_root(&mut &b"root b"[..], 6).unwrap();
    slots.stage_kernel(&mut &b"kernel b"[..], 8).unwrap();
    assert_eq!(next(slots), Slot::A, "nothing is tried before it is complete");
    slots.try_staged().unwrap();
}

#[test]
fn an_update_is_tried_then_committed() {
    for loader in [Loader::SystemdBoot, Loader::UBoot] {
        let (_dir, mut slots) = device(loader);
        assert_eq!(slots.standing().unwrap().trust, Some(Trust::Good), "{loader:?}");
        install(&mut slots);
        assert_eq!(next(&slots), Slot::B);
        slots.running = Slot::B;
        assert_eq!(slots.standing().unwrap().trust, Some(Trust::Trying(slot::TRIES)));
        slots.commit().unwrap();
        assert_eq!(
            slots.standing().unwrap(),
            Standing { running: Slot::B, trust: Some(Trust::Good), other: Some(Trust::Good), other_unstarted: false }
        );
        assert_eq!(next(&slots), Slot::B);
        slots.try_other().unwrap();
        assert_eq!(next(&slots), Slot::A);
    }
}

#[test]
fn a_condemned_slot_is_not_started_again() {
    for loader in [Loader::SystemdBoot, Loader::UBoot] {
        let (_dir, mut slots) = device(loader);
        install(&mut slots);
        slots.running = Slot::B;
        slots.condemn().unwrap();
        assert_eq!(next(&slots), Slot::A, "{loader:?}");
    }
}

#[test]
fn what_does_not_fit_is_refused_in_words() {
    let (_dir, mut slots) = device(Loader::SystemdBoot);
    let error = slots.write_root(&mut io::repeat(1), 1001).unwrap_err().to_string();
    assert!(error.contains("1001") && error.contains("1000") && error.contains("flash"), "{error}");
    let error = slots.stage_kernel(&mut io::repeat(1), u64::MAX).unwrap_err().to_string();
    assert!(error.contains("free"), "{error}");
    assert!(slots.write_root(&mut &b"short"[..], 6).is_err(), "a truncated image is an error");
}

#[test]
fn starts_are_counted_and_cleared() {
    let (_dir, mut slots) = device(Loader::UBoot);
    slots.set_starts(slots.starts().begun()).unwrap();
    slots.set_starts(slots.starts().begun()).unwrap();
    assert_eq!(slots.starts(), Starts { failed: 0, early: 2 });
    slots.start_failed().unwrap();
    assert_eq!(slots.starts(), Starts { failed: 1, early: 0 });
    slots.clear_starts().unwrap();
    assert_eq!(slots.starts(), Starts::default());
    assert_eq!(slots.stored().unwrap().env, BootEnv::default(), "the count does not touch U-Boot's environment");
}

#[test]
fn damaged_copy_of_the_environment_changes_no_slot() {
    let (dir, mut slots) = device(Loader::UBoot);
    install(&mut slots);
    slots.running = Slot::B;
    slots.commit().unwrap();
    let path = dir.path().join("dev/bootenv");
    for at in uboot::OFFSETS {
        let mut bytes = fs::read(&path).unwrap();
        bytes[usize::try_from(at).unwrap() + 20] ^= 4;
        fs::write(&path, bytes).unwrap();
        assert_eq!(slots.standing().unwrap().trust, Some(Trust::Good));
        assert_eq!(next(&slots), Slot::B);
        slots.arm().unwrap();
        assert!(!slots.stored().unwrap().needs_repair(), "both copies are written");
    }
}

#[test]
fn first_process_sets_a_committed_slot_back() {
    for loader in [Loader::SystemdBoot, Loader::UBoot] {
        let (_dir, mut slots) = device(loader);
        // The entry or environment as an older release left it.
        slots.arm().unwrap();
        assert_eq!(slots.standing().unwrap().trust, Some(Trust::Good), "{loader:?}");
        if loader == Loader::SystemdBoot {
            assert_eq!(slots.entry(Slot::A).unwrap().to_string(), "spoke-000001-a+2-2.efi");
        }
        install(&mut slots);
        slots.running = Slot::B;
        slots.arm().unwrap();
        assert_eq!(slots.standing().unwrap().trust, Some(Trust::Trying(slot::TRIES)), "a trial is counted on");
    }
}

#[test]
fn seal_only_rises() {
    let (_dir, slots) = device(Loader::SystemdBoot);
    assert_eq!(slots.seal(), Seal::default());
    slots.raise_seal(Seal { serial: 2, floor: 3, sequence: 4 }).unwrap();
    slots.raise_seal(Seal { serial: 1, floor: 5, sequence: 1 }).unwrap();
    assert_eq!(slots.seal(), Seal { serial: 2, floor: 5, sequence: 4 });
}

#[test]
fn download_is_kept_behind_both_roots() {
    let (dir, mut slots) = device(Loader::SystemdBoot);
    let path = dir.path().join("dev/root_b");
    // A root of 2 MB in a slot of 16 MiB.
    let mut partition = vec![7; 16 << 20];
    partition[..4].copy_from_slice(b"hsqs");
    partition[40..48].copy_from_slice(&2_000_000u64.to_le_bytes());
    fs::write(&path, &partition).unwrap();
    let id = "1".repeat(64);
    let room = slots.room(1, &id).unwrap();
    assert_eq!(room, Room { at: 3 << 20, size: (13 << 20) - 4096, have: 0 });
    assert_eq!(slots.room(9 << 20, &id).unwrap().at, 9 << 20);
    slots.keep(&mut &b"root"[..], room.at, 4).unwrap();
    slots.keep(&mut &b"kernel"[..], room.at + 4, 6).unwrap();
    slots.mark(&Kept { id: id.clone(), at: room.at, have: 10 }).unwrap();
    let after = fs::read(&path).unwrap();
    assert_eq!(after[..3 << 20], partition[..3 << 20], "the root that is there is whole");
    // The new root overwrites the superblock, and the copy goes on.
    let mut kept = slots.kept(room.at).unwrap();
    slots.write_root(&mut kept, 4).unwrap();
    let mut kernel = String::new();
    kept.take(6).read_to_string(&mut kernel).unwrap();
    assert_eq!((&fs::read(&path).unwrap()[..4], kernel.as_str()), (&b"root"[..], "kernel"));
    // Then: after a power cut in that copy the download is still there, for this release only.
    assert_eq!(slots.room(4, &id).unwrap(), Room { have: 10, ..room });
    assert_eq!(slots.room(4, &"2".repeat(64)).unwrap().have, 0);
}

#[test]
fn kept_download_never_overlaps_a_root_written_since() {
    let (dir, mut slots) = device(Loader::SystemdBoot);
    let path = dir.path().join("dev/root_b");
    fs::write(&path, vec![0; 16 << 20]).unwrap();
    let id = "1".repeat(64);
    let room = slots.room(1 << 20, &id).unwrap();
    slots.mark(&Kept { id: id.clone(), at: room.at, have: 5 << 20 }).unwrap();
    assert_eq!(slots.room(1 << 20, &id).unwrap().have, 5 << 20);
    // When: another release of 3 MB is written to the slot.
    let mut root = vec![9; 3_000_000];
    root[..4].copy_from_slice(b"hsqs");
    root[40..48].copy_from_slice(&3_000_000u64.to_le_bytes());
    slots.write_root(&mut &root[..], 3_000_000).unwrap();
    let again = slots.room(1 << 20, &id).unwrap();
    assert!(again.have == 0 && again.at >= 3_000_000, "{again:?}");
}
