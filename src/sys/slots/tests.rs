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
    fs::write(devices.join("bootenv"), vec![0; 0x2_0000]).unwrap();
    let slots = DiskSlots::at(loader, Slot::A, boot, devices, false);
    (dir, slots)
}

/// What the boot loader would start.
fn next(slots: &DiskSlots) -> Slot {
    match slots.loader {
        Loader::UBoot => slots.environment().unwrap().next(),
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
            Standing { running: Slot::B, trust: Some(Trust::Good), other: Some(Trust::Good) }
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
    slots.set_starts(slots.starts().one_more()).unwrap();
    slots.set_starts(slots.starts().one_more()).unwrap();
    assert_eq!(slots.starts(), Starts(2));
    slots.clear_starts().unwrap();
    assert_eq!(slots.starts(), Starts(0));
    assert_eq!(slots.environment().unwrap(), BootEnv::default(), "the count does not touch U-Boot's block");
}
