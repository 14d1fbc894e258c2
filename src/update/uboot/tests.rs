//! Two copies on a simulated disk: damage, power cuts, and a release that knows only the first.
use super::*;
use proptest::prelude::*;

fn vars() -> impl Strategy<Value = SlotVars> {
    let trust = prop_oneof![Just(Trust::Good), (0u8..=9).prop_map(Trust::Trying)];
    (trust, proptest::option::of(0u8..=2)).prop_map(|(trust, left)| SlotVars { trust, left })
}

prop_compose! {
    fn env()(first in any::<bool>(), a in vars(), b in vars()) -> BootEnv {
        BootEnv { first: if first { Slot::A } else { Slot::B }, a, b }
    }
}

/// Both copies on a disk.
type Disk = [Vec<u8>; 2];

fn on(disk: &Disk) -> Stored {
    Stored::parse([&disk[0], &disk[1]])
}

fn write(disk: &mut Disk, env: &BootEnv) {
    for (at, bytes) in on(disk).store(env) {
        disk[at] = bytes;
    }
}

fn disk(env: &BootEnv) -> Disk {
    let mut disk = [vec![0; SIZE], vec![0; SIZE]];
    write(&mut disk, env);
    disk
}

/// The block as a release before the second copy writes and reads it.
fn old_block(env: &BootEnv) -> Vec<u8> {
    let value = |t: Trust| match t {
        Trust::Good => "ok".to_owned(),
        Trust::Trying(n) => n.to_string(),
    };
    let (a, b, first) = (value(env.a.trust), value(env.b.trust), env.first);
    let mut data = format!("spoke_a={a}\0spoke_b={b}\0spoke_order={first} {}\0\0", first.other()).into_bytes();
    data.resize(SIZE - 4, 0);
    [crc32(&data).to_le_bytes().to_vec(), data].concat()
}

#[test]
fn crc32_has_the_check_value() {
    assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
}

#[test]
fn exhausted_trial_returns_to_the_old_slot() {
    let mut env = BootEnv::default().trying(Slot::B);
    for left in (0..TRIES).rev() {
        assert_eq!(env.next(), Slot::B);
        env = env.with(Slot::B, Trust::Trying(left));
    }
    assert_eq!(env.next(), Slot::A);
}

#[test]
fn exhausted_committed_slot_is_passed_over() {
    let mut env = BootEnv::default().with(Slot::B, Trust::Good).committed(Slot::A);
    assert_eq!((env.next(), env.trust(Slot::A)), (Slot::A, Trust::Good));
    env.a.left = Some(0);
    assert_eq!((env.next(), env.trust(Slot::A)), (Slot::B, Trust::Trying(0)));
    assert_eq!(env.clone().armed(Slot::B).next(), Slot::B);
    assert_eq!(env.armed(Slot::A).next(), Slot::A);
    assert_eq!(BootEnv::default().armed(Slot::B), BootEnv::default(), "an empty slot is not armed");
}

proptest! {
    #[test]
    fn environment_round_trips(one in env(), two in env()) {
        let mut disk = disk(&one);
        prop_assert_eq!(&on(&disk).env, &one);
        write(&mut disk, &two);
        prop_assert_eq!(&on(&disk).env, &two);
        prop_assert!(on(&disk).store(&two).is_empty(), "what is stored is not written again");
        prop_assert!(!on(&disk).needs_repair());
    }

    #[test]
    fn damage_of_one_copy_loses_nothing(env in env(), copy in 0usize..2, at in 0..SIZE, bit in 0u8..8) {
        let mut disk = disk(&env);
        disk[copy][at] ^= 1 << bit;
        prop_assert_eq!(&on(&disk).env, &env);
        prop_assert!(on(&disk).needs_repair());
        write(&mut disk, &env);
        prop_assert_eq!(&disk[0], &disk[1]);
    }

    #[test]
    fn cut_at_any_write_leaves_the_old_or_the_new(
        old in env(), new in env(), first in proptest::option::of((0usize..2, 0..SIZE)), writes in 0usize..2, torn in 0..SIZE,
    ) {
        // Given: a disk with one copy damaged, or whole.
        let mut disk = disk(&old);
        if let Some((copy, at)) = first {
            disk[copy][at] ^= 1;
        }
        // When: power is lost in a write.
        let steps = on(&disk).store(&new);
        for (n, (at, bytes)) in steps.iter().enumerate().take(writes + 1) {
            if n < writes { disk[*at].clone_from(bytes) } else { disk[*at][..torn].copy_from_slice(&bytes[..torn]) }
        }
        // Then
        let found = on(&disk).env;
        prop_assert!(found == old || found == new, "{found:?}");
    }

    #[test]
    fn older_release_reads_and_writes_the_first_copy(ours in env(), theirs in env()) {
        // It reads three variables of the first copy; what it writes there is current.
        let mut disk = disk(&ours);
        let (read, _) = BootEnv::read(&disk[0]).unwrap();
        prop_assert_eq!((read.first, read.a.trust, read.b.trust), (ours.first, ours.a.trust, ours.b.trust));
        disk[0] = old_block(&theirs);
        let uncounted = BootEnv { a: SlotVars { left: None, ..theirs.a }, b: SlotVars { left: None, ..theirs.b }, ..theirs };
        prop_assert_eq!(&on(&disk).env, &uncounted);
        let counted = uncounted.clone().armed(Slot::A);
        write(&mut disk, &counted);
        prop_assert_eq!(&on(&disk).env, &counted);
        prop_assert_eq!(&disk[0], &disk[1]);
    }

    #[test]
    fn any_bytes_are_parsed(one in proptest::collection::vec(any::<u8>(), 0..SIZE + 10), two in proptest::collection::vec(any::<u8>(), 0..64)) {
        let _ = Stored::parse([&one, &two]);
    }
}
