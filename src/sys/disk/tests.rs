//! Durable writes, documents and secrets on real files.
use super::*;
use crate::sim::another_user;
use proptest::prelude::*;
use std::os::unix::fs::PermissionsExt as _;

#[test]
fn a_present_file_is_never_replaced_unasked() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    write_atomic(&path, b"one", false).unwrap();
    assert!(
        matches!(write_atomic(&path, b"two", false), Err(DiskError::Write { source, .. }) if source.kind() == std::io::ErrorKind::AlreadyExists)
    );
    assert_eq!(std::fs::read(&path).unwrap(), b"one");
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file stays");
}

#[test]
fn document_that_root_writes_belongs_to_the_owner_of_the_directory() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("document.json");
    let service = another_user();
    service.take(dir.path()).unwrap();
    Document::new(path.clone(), 1).store(&1u32).unwrap();
    assert_eq!(Owner::of(&path).unwrap(), service);
    // A backup that root writes beside it is root's.
    write_atomic(&dir.path().join("backup"), b"keys", true).unwrap();
    assert_eq!(Owner::of(&dir.path().join("backup")).unwrap().uid, rustix::process::geteuid().as_raw());
}

#[test]
fn a_secret_that_others_may_read_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    write_atomic(&path, b"secret", false).unwrap();
    assert_eq!(read_secret(&path, 100).unwrap().unwrap().as_slice(), b"secret");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    let error = read_secret(&path, 100).unwrap_err().to_string();
    assert!(error.contains("chmod 600") && error.contains("0640"), "{error}");
}

#[test]
fn a_document_cut_in_half_falls_back_to_the_previous_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("doc.json");
    let mut doc = Document::<Vec<u32>>::new(path.clone(), 1);
    assert!(doc.load().unwrap().is_none());
    assert!(doc.store(&vec![1]).unwrap());
    assert!(!doc.store(&vec![1]).unwrap(), "no write without a change");
    assert!(doc.store(&vec![1, 2]).unwrap());
    let whole = std::fs::read(&path).unwrap();
    for cut in 0..whole.len() {
        std::fs::write(&path, &whole[..cut]).unwrap();
        assert_eq!(Document::<Vec<u32>>::new(path.clone(), 1).peek(), Some(vec![1]), "cut at {cut}");
        assert_eq!(Document::<Vec<u32>>::new(path.clone(), 1).load().unwrap(), Some(vec![1]), "cut at {cut}");
    }
    std::fs::remove_file(dir.path().join("doc.json.prev")).unwrap();
    assert_eq!(Document::<Vec<u32>>::new(path.clone(), 1).peek(), None);
    assert!(path.exists(), "who only looks moves nothing");
    let error = Document::<Vec<u32>>::new(path.clone(), 1).load().unwrap_err().to_string();
    assert!(error.contains("damaged") && error.contains("kept as") && error.contains("doc.damaged"), "{error}");
    assert!(Document::<Vec<u32>>::new(path, 1).load().unwrap().is_none(), "the next start is clean");
}

#[test]
fn removed_document_does_not_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("doc.json");
    let again = || Document::<Vec<u32>>::new(path.clone(), 1);
    let mut doc = again();
    for value in 1..4 {
        doc.store(&vec![value]).unwrap();
    }
    std::fs::remove_file(&path).unwrap();
    assert!(dir.path().join("doc.json.prev").exists());
    assert_eq!((again().load().unwrap(), again().peek()), (None, None), "missing is not damaged");
    // Its successor has no previous copy.
    again().store(&vec![9]).unwrap();
    std::fs::write(&path, b"{").unwrap();
    assert_eq!(again().peek(), None);
    again().store(&vec![9]).unwrap();
    doc = again();
    doc.store(&vec![10]).unwrap();
    doc.remove().unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    doc.remove().unwrap();
}

#[test]
fn unreadable_document_falls_back_to_the_previous_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("doc.json");
    let mut doc = Document::<Vec<u32>>::new(path.clone(), 1);
    doc.store(&vec![1]).unwrap();
    doc.store(&vec![2]).unwrap();
    // EISDIR stands for any error of reading, EIO among them.
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    let mut again = Document::<Vec<u32>>::new(path.clone(), 1);
    assert_eq!((again.peek(), again.load().unwrap()), (Some(vec![1]), Some(vec![1])));
    std::fs::remove_file(dir.path().join("doc.json.prev")).unwrap();
    assert!(matches!(again.load(), Err(DiskError::Read { .. })));
}

#[test]
fn a_full_disk_is_said_with_what_to_do() {
    // That the old content stays on a file system that is really full is shown in the kernel tier.
    let e = DiskError::write(Path::new("/x"), rustix::io::Errno::NOSPC);
    assert!(e.to_string().contains("free some space"), "{e}");
}

#[test]
fn public_file_replaces_a_prepared_one_and_a_pipe_is_written() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    let dir = tempfile::tempdir().unwrap();
    let (path, elsewhere) = (dir.path().join("bundle"), dir.path().join("elsewhere"));
    std::fs::write(&elsewhere, "kept").unwrap();
    std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
    std::fs::write(dir.path().join("bundle.new"), "").unwrap();
    write_public(&path, &mut |file| file.write_all(b"signed")).unwrap();
    let made = std::fs::symlink_metadata(&path).unwrap();
    assert!(made.is_file() && made.mode() & 0o7777 == 0o644, "{made:?}");
    assert_eq!(
        (std::fs::read(&path).unwrap(), std::fs::read(&elsewhere).unwrap()),
        (b"signed".to_vec(), b"kept".to_vec())
    );
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    assert!(write_public(&path, &mut |_| Err(std::io::Error::other("half"))).is_err());
    assert_eq!(std::fs::read(&path).unwrap(), b"signed", "the old content stays");
    write_public(Path::new("/dev/null"), &mut |file| file.write_all(b"x")).unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
}

#[test]
fn replaced_document_keeps_no_older_content() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("doc.json");
    let mut doc = Document::<Vec<u32>>::new(path.clone(), 1);
    doc.store(&vec![1]).unwrap();
    doc.store(&vec![1, 2]).unwrap();
    assert!(doc.replace(&vec![2]).unwrap());
    std::fs::write(&path, "damaged").unwrap();
    assert_eq!(Document::<Vec<u32>>::new(path.clone(), 1).peek(), None, "no previous copy");
    doc.store(&vec![1, 2]).unwrap();
    doc.store(&vec![1, 2, 3]).unwrap();
    // Nothing can be written where the name of the temporary file is too long.
    let path = dir.path().join(format!("{}.json", "d".repeat(240)));
    std::fs::rename(doc.path(), &path).unwrap();
    let mut doc = Document::<Vec<u32>>::new(path.clone(), 1);
    let failed = doc.replace(&vec![3]).unwrap_err();
    assert!(failed.removed, "{failed}");
    assert_eq!(Document::<Vec<u32>>::new(path, 1).peek(), None);
}

proptest! {
    #[test]
    fn flipped_bits_never_pass(at in 0usize..200, bit in 0u8..8) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("doc.json");
        let mut doc = Document::<String>::new(path.clone(), 1);
        let text = "a state document long enough to be hit".to_owned();
        doc.store(&text).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        std::fs::write(&path, &bytes).unwrap();
        let read = Document::<String>::new(path, 1).load();
        let fine = matches!(read, Err(DiskError::Damaged { .. })) || matches!(&read, Ok(Some(t)) if *t == text);
        prop_assert!(fine);
    }
}
