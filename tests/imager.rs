//! The command line of `spoke-image`: exit codes and messages for bad input.
#![allow(clippy::unwrap_used)]
use std::process::{Command, Output};

fn spoke_image(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_spoke-image")).args(args).output().unwrap()
}

#[test]
fn bad_input_exits_with_2_and_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let empty = dir.path().join("disk.img");
    std::fs::write(&empty, [0; 4096]).unwrap();
    let out = spoke_image(&["inspect", empty.to_str().unwrap()]);
    assert_eq!(out.status.code(), Some(2), "{out:?}");
    assert!(String::from_utf8_lossy(&out.stderr).contains("disk.img"), "{out:?}");
    assert_eq!(spoke_image(&["no-such-command"]).status.code(), Some(2));
    assert_eq!(spoke_image(&["--version"]).status.code(), Some(0));
}

#[test]
fn settings_with_faults_are_refused_before_the_disk_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, settings) = (dir.path().join("disk.img"), dir.path().join("spoke.toml"));
    std::fs::write(&disk, [0; 4096]).unwrap();
    std::fs::write(&settings, "[node]\nstate_dri = \"/x\"\n").unwrap();
    let out = spoke_image(&["provision", disk.to_str().unwrap(), settings.to_str().unwrap()]);
    assert_eq!(out.status.code(), Some(2), "{out:?}");
    assert!(String::from_utf8_lossy(&out.stderr).contains("state_dri"), "{out:?}");
}

/// Settings may hold secrets: a token, keys.
#[test]
fn file_that_gets_settings_is_its_owners_alone() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let dir = tempfile::tempdir().unwrap();
    let (image, settings) = (dir.path().join("disk.img"), dir.path().join("spoke.toml"));
    write_image(&image);
    std::fs::write(&settings, "[node]\nid = \"edge\"\n[[interface]]\nname = \"wg0\"\naddresses = [\"10.8.0.2/24\"]\n")
        .unwrap();
    let flash = |target: &std::path::Path| {
        let provision = ["--provision", settings.to_str().unwrap()];
        spoke_image(&[&["flash", "--yes", image.to_str().unwrap(), target.to_str().unwrap()], &provision[..]].concat())
    };
    // There is no file system on it, so the settings themselves are not written.
    let fresh = dir.path().join("fresh");
    flash(&fresh);
    assert_eq!(std::fs::metadata(&fresh).unwrap().mode() & 0o777, 0o600);
    let prepared = dir.path().join("prepared");
    std::fs::write(&prepared, "").unwrap();
    std::fs::set_permissions(&prepared, std::fs::Permissions::from_mode(0o666)).unwrap();
    flash(&prepared);
    assert_eq!(std::fs::metadata(&prepared).unwrap().mode() & 0o777, 0o600);
}

#[test]
fn spoke_image_signs_settings_for_a_device() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let public = String::from_utf8(spoke_image(&["new-key", &path("owner.key")]).stdout).unwrap();
    std::fs::write(path("edge.toml"), "[node]\nid = \"edge\"\n").unwrap();
    let out = spoke_image(&["sign", &path("edge.toml"), "--key", &path("owner.key")]);
    assert_eq!(out.status.code(), Some(0), "{out:?}");
    let signature = std::fs::read_to_string(path("edge.toml.sig")).unwrap();
    let replacing = spoke_config::appliance::Replacing::read(&public);
    assert!(replacing.allows(b"[node]\nid = \"edge\"\n", Some(&signature)));
    assert!(!replacing.allows(b"[node]\nid = \"evil\"\n", Some(&signature)) && !replacing.allows(b"", None));
}

#[test]
fn missing_disk_becomes_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.img");
    write_image(&image);
    let out = spoke_image(&["flash", "--yes", image.to_str().unwrap(), "/dev/spoke-test-no-such-disk"]);
    assert_eq!(out.status.code(), Some(2), "{out:?}");
    assert!(String::from_utf8_lossy(&out.stderr).contains("there is no disk"), "{out:?}");
    assert!(!std::path::Path::new("/dev/spoke-test-no-such-disk").exists());
}

#[test]
fn existing_file_is_overwritten_only_when_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let (image, target) = (dir.path().join("disk.img"), dir.path().join("precious"));
    write_image(&image);
    std::fs::write(&target, "precious").unwrap();
    let arguments = ["flash", image.to_str().unwrap(), target.to_str().unwrap()];
    let out = spoke_image(&arguments);
    assert_eq!(out.status.code(), Some(2), "{out:?}");
    assert_eq!(std::fs::read(&target).unwrap(), b"precious");
    let out = spoke_image(&["flash", "--yes", arguments[1], arguments[2]]);
    assert_eq!(out.status.code(), Some(0), "{out:?}");
    // Two disks with one image have different ids.
    let again = dir.path().join("again");
    assert_eq!(spoke_image(&["flash", arguments[1], again.to_str().unwrap()]).status.code(), Some(0));
    let id = |path: &std::path::Path| std::fs::read(path).unwrap()[512 + 56..512 + 72].to_vec();
    assert_ne!(id(&target), id(&again));
}

#[test]
fn damage_inside_an_image_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let (image, target) = (dir.path().join("disk.img"), dir.path().join("out"));
    write_image(&image);
    let whole = std::fs::read(&image).unwrap();
    // The table, the root, the kernel's command line.
    for at in [512 + 60, 2048 + 40, ROOT + 5000, BOOT + 20] {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        std::fs::write(&image, damaged).unwrap();
        let out = spoke_image(&["flash", image.to_str().unwrap(), target.to_str().unwrap()]);
        assert_eq!(out.status.code(), Some(2), "{at}: {out:?}");
        assert!(!target.exists(), "{at}");
    }
    // Elsewhere by the checksums of the build.
    let mut damaged = whole.clone();
    damaged[BOOT + 600] ^= 1;
    std::fs::write(&image, damaged).unwrap();
    std::fs::write(dir.path().join("SHA256SUMS"), format!("{}  disk.img\n", sha256(&whole))).unwrap();
    let out = spoke_image(&["flash", image.to_str().unwrap(), target.to_str().unwrap()]);
    assert!(String::from_utf8_lossy(&out.stderr).contains("SHA256SUMS"), "{out:?}");
}

#[test]
fn keys_work_by_bare_name_and_must_be_certified() {
    let dir = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_spoke-image")).args(args).current_dir(dir.path()).output().unwrap()
    };
    let public = |out: Output| String::from_utf8(out.stdout).unwrap().trim().to_owned();
    assert_eq!(run(&["new-key", "root.key"]).status.code(), Some(0));
    let signing = public(run(&["new-key", "signing.key"]));
    assert_eq!(run(&["new-key", "other.key"]).status.code(), Some(0));
    let out = run(&["certify", "--root", "root.key", "--serial", "1", "--output", "certificate.json", &signing]);
    assert_eq!(out.status.code(), Some(0), "{out:?}");
    for name in ["root.img", "boot.efi"] {
        std::fs::write(dir.path().join(name), "x").unwrap();
    }
    std::fs::write(dir.path().join("contents.json"), r#"{"board":"x","version":"1","sequence":7}"#).unwrap();
    let bundle = |key: &str, sequence: &str| {
        run(&[
            "bundle",
            "--image",
            ".",
            "--sequence",
            sequence,
            "--certificate",
            "certificate.json",
            "--key",
            key,
            "--output",
            "out.spoke",
        ])
    };
    assert_eq!(bundle("signing.key", "7").status.code(), Some(0));
    let out = bundle("other.key", "7");
    assert_eq!(out.status.code(), Some(2), "{out:?}");
    assert!(String::from_utf8_lossy(&out.stderr).contains("other.key"), "{out:?}");
    // The number in the image is the one its devices compare.
    assert_eq!(bundle("signing.key", "8").status.code(), Some(2));
}

#[test]
fn two_keys_and_a_command_sign_a_release() {
    let dir = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_spoke-image")).args(args).current_dir(dir.path()).output().unwrap()
    };
    let ok = |args: &[&str]| {
        let out = run(args);
        assert_eq!(out.status.code(), Some(0), "{out:?}");
        String::from_utf8(out.stdout).unwrap().trim().to_owned()
    };
    let root = ok(&["new-key", "root.key"]);
    std::fs::write(dir.path().join("roots.pub"), &root).unwrap();
    let (one, two) = (ok(&["new-key", "one.key"]), ok(&["new-key", "two.key"]));
    let certify = ["certify", "--root", "root.key", "--serial", "1", "--output", "certificate.json"];
    assert_eq!(run(&[&certify[..], &["--threshold", "3", &one, &two]].concat()).status.code(), Some(2));
    ok(&[&certify[..], &["--threshold", "2", &one, &two]].concat());
    for name in ["root.img", "boot.efi"] {
        std::fs::write(dir.path().join(name), "x").unwrap();
    }
    std::fs::write(dir.path().join("contents.json"), r#"{"board":"x","version":"1","sequence":7}"#).unwrap();
    let bundle =
        ["bundle", "--image", ".", "--sequence", "7", "--certificate", "certificate.json", "--output", "out.spoke"];
    // Ed25519 by openssl, whose key is the same seed in PKCS #8 (RFC 8410): no key file of ours.
    let seed = std::fs::read_to_string(dir.path().join("two.key")).unwrap();
    let script = format!(
        "cat >m; (printf '\\060\\056\\002\\001\\000\\060\\005\\006\\003\\053\\145\\160\\004\\042\\004\\040'; echo {} | base64 -d) >k.der; openssl pkeyutl -sign -rawin -inkey k.der -keyform DER -in m",
        seed.trim()
    );
    let text = ok(&[&bundle[..], &["--key", "one.key"]].concat());
    assert!(text.contains("1 of 2 signatures"), "{text}");
    ok(&["sign", "out.spoke", "--signer", &script]);
    let shown = ok(&["inspect", "out.spoke"]);
    assert!(shown.contains("2 of which must sign") && shown.contains("signed       2 times"), "{shown}");
    // Signed twice by the same key, it is still two.
    ok(&["sign", "out.spoke", "--key", "one.key"]);
    assert!(ok(&["inspect", "out.spoke"]).contains("signed       2 times"));
    // The device's own check.
    let mut file = std::fs::File::open(dir.path().join("out.spoke")).unwrap();
    let known = spoke_update::manifest::Known { board: "x".into(), serial: 0, floor: 0 };
    let roots = spoke_update::manifest::Roots::parse(&root);
    spoke_sys::bundle::open(&mut file, &roots, &known).unwrap();

    for (command, expected) in [
        ("exit 3", "exit status: 3"),
        ("cat >/dev/null; head -c 64 /dev/zero", "no signature by a key"),
        ("cat >/dev/null; echo hello", "no Ed25519 signature"),
    ] {
        let out = run(&["sign", "out.spoke", "--signer", command]);
        assert_ne!(out.status.code(), Some(0));
        assert!(String::from_utf8_lossy(&out.stderr).contains(expected), "{out:?}");
    }
    let out = run(&["sign", "certificate.json", "--signer", &script, "--roots", "roots.pub"]);
    assert_eq!(out.status.code(), Some(2), "a signing key is no root: {out:?}");
}

#[test]
fn image_without_update_keys_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.img");
    write_image(&image);
    std::fs::write(dir.path().join("contents.json"), r#"{"update_keys":0}"#).unwrap();
    let out = spoke_image(&["flash", image.to_str().unwrap(), dir.path().join("out").to_str().unwrap()]);
    assert!(String::from_utf8_lossy(&out.stdout).contains("accepts no updates"), "{out:?}");
}

const BOOT: usize = 1 << 20;
const ROOT: usize = 2 << 20;

/// An image in small: a partition table, a kernel's command line on `boot`, a root with the superblock of its hash tree.
fn write_image(path: &std::path::Path) {
    let mut disk = vec![0; 4 << 20];
    let blocks = 3;
    for (i, byte) in disk[ROOT..ROOT + blocks * 4096].iter_mut().enumerate() {
        *byte = (i / 7) as u8;
    }
    let superblock = ROOT + blocks * 4096;
    disk[superblock..superblock + 8].copy_from_slice(b"verity\0\0");
    let mut level = Vec::new();
    for block in disk[ROOT..superblock].chunks(4096) {
        level.extend(ring::digest::digest(&ring::digest::SHA256, block).as_ref());
    }
    level.resize(4096, 0);
    let line = format!("spoke.roothash={} spoke.hashoffset={} quiet", sha256(&level), blocks * 4096);
    disk[BOOT..BOOT + line.len()].copy_from_slice(line.as_bytes());
    std::fs::write(path, disk).unwrap();
    let table = "label: gpt\nfirst-lba: 2048\nstart=1MiB, size=1MiB, name=boot\nstart=2MiB, size=1MiB, name=root_a\n";
    let mut sfdisk = Command::new("sfdisk")
        .args(["-q", path.to_str().unwrap()])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut sfdisk.stdin.take().unwrap(), table.as_bytes()).unwrap();
    assert!(sfdisk.wait().unwrap().success());
}

fn sha256(bytes: &[u8]) -> String {
    const_hex::encode(ring::digest::digest(&ring::digest::SHA256, bytes))
}
