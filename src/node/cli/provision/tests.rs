//! Provisioning from a boot partition that is a directory.
use super::*;
use spoke_sys::disk::Owner;

const GOOD: &str = "[node]\nid = \"n1\"\n[control]\nurl = \"https://c.example.net\"\n";

fn args() -> (tempfile::TempDir, Args) {
    let dir = tempfile::tempdir().unwrap();
    let (boot, state) = (dir.path().join("boot"), dir.path().join("state"));
    for d in [&boot, &state.join("config"), &state.join("ssh"), &state.join(STATE)] {
        std::fs::create_dir_all(d).unwrap();
    }
    (dir, Args { boot, state, once: true })
}

#[test]
fn settings_are_stored_once_and_wiped() {
    let (_dir, args) = args();
    let key = format!("ssh-ed25519 {} me", "A".repeat(68));
    std::fs::write(args.boot.join(SETTINGS), format!("{GOOD}[appliance]\nssh_keys = [\"{key}\"]\n")).unwrap();
    run(&args).unwrap();
    assert!(!args.boot.join(SETTINGS).exists());
    let config = std::fs::read_to_string(args.state.join("config/spoke.toml")).unwrap();
    assert!(config.contains("n1") && !config.contains("appliance"), "{config}");
    assert_eq!(std::fs::read_to_string(args.state.join("ssh/authorized_keys")).unwrap(), format!("{key}\n"));
    run(&args).unwrap();
}

#[test]
fn host_settings_are_kept_and_removed() {
    let (_dir, args) = args();
    let host = |name: &str| std::fs::read_to_string(args.state.join("host").join(name)).ok();
    std::fs::write(
        args.boot.join(SETTINGS),
        "[node]\nid = \"Edge_1\"\n[[interface]]\nname = \"wg0\"\n[appliance]\nreplaceable = true\nntp = [\"192.0.2.1\", \"ntp.example.net\"]\n",
    )
    .unwrap();
    run(&args).unwrap();
    assert_eq!(host("hostname").as_deref(), Some("Edge-1\n"));
    let expected = "[Time]\nNTP=192.0.2.1 ntp.example.net\nFallbackNTP=\n";
    assert_eq!(host("timesyncd.conf").as_deref(), Some(expected));
    std::fs::write(args.boot.join(SETTINGS), "[[interface]]\nname = \"wg0\"\n").unwrap();
    run(&args).unwrap();
    assert_eq!((host("hostname"), host("timesyncd.conf")), (None, None));
}

fn configured() -> (tempfile::TempDir, Args, PathBuf) {
    let (dir, args) = args();
    let config = args.state.join("config/spoke.toml");
    std::fs::write(&config, GOOD).unwrap();
    (dir, args, config)
}

#[test]
fn settings_are_locked_after_the_first_boot() {
    use spoke_config::appliance::signed_message;
    use spoke_model::signature::SignKey;
    let (_dir, args) = args();
    let (owner, thief) = (SignKey::from_seed(&[1; 32]).unwrap(), SignKey::from_seed(&[2; 32]).unwrap());
    let config = args.state.join("config").join(SETTINGS);
    // The node that the device has after a boot with these settings and this signature on the boot partition.
    let boot = |settings: &str, signer: Option<&SignKey>| {
        std::fs::write(args.boot.join(SETTINGS), settings).unwrap();
        let _ = std::fs::remove_file(args.boot.join(SIGNATURE));
        if let Some(key) = signer {
            let signature = key.sign(&signed_message(settings.as_bytes()));
            std::fs::write(args.boot.join(SIGNATURE), format!("{signature}\n")).unwrap();
        }
        run(&args).unwrap();
        let kept = std::fs::read_to_string(&config).unwrap();
        let node = Config::from_text(Some((SETTINGS, &kept)), std::iter::empty()).unwrap().node.id.unwrap().to_string();
        (node, args.boot.join(SETTINGS).exists())
    };
    let settings = |node: &str, more: &str| format!("{}{more}", GOOD.replace("n1", node));
    let owned = format!("[appliance]\nreplaceable = [\"{}\"]\n", owner.public());
    assert_eq!(boot(&settings("n1", &owned), None), ("n1".into(), false));
    assert_eq!(boot(&settings("evil", ""), None), ("n1".into(), true));
    assert_eq!(boot(&settings("evil", ""), Some(&thief)), ("n1".into(), true));
    assert_eq!(boot(&settings("n2", ""), Some(&owner)), ("n2".into(), false));
    assert!(!args.boot.join(SIGNATURE).exists());
    // Those settings name no owner.
    assert_eq!(boot(&settings("n3", ""), Some(&owner)), ("n2".into(), true));
    std::fs::write(args.state.join("host").join(REPLACING), "everybody\n").unwrap();
    assert_eq!(boot(&settings("n4", "[appliance]\nreplaceable = true\n"), None), ("n4".into(), false));
    assert_eq!(boot(&settings("n5", ""), None), ("n5".into(), false));
}

#[test]
fn unreadable_settings_do_not_stop_a_configured_board() {
    let (_dir, args, config) = configured();
    // A directory cannot be read as a file, also by root.
    std::fs::create_dir(args.boot.join(SETTINGS)).unwrap();
    run(&args).unwrap();
    assert_eq!(std::fs::read_to_string(&config).unwrap(), GOOD);
    std::fs::remove_file(&config).unwrap();
    assert!(matches!(run(&args), Err(Failure::BadInput(e)) if e.contains("cannot read")), "an unconfigured one waits");
}

#[test]
fn settings_that_cannot_be_wiped_are_taken_once() {
    let (_dir, args, config) = configured();
    keep_host(&args, REPLACING, &Replacing::Everybody.text()).unwrap();
    let settings = |node: &str| format!("{}[appliance]\nreplaceable = true\n", GOOD.replace("n1", node));
    let new = settings("n2");
    // Sealed: readable, and refuses writes by root too.
    let sealed = rustix::fs::memfd_create("settings", rustix::fs::MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::io::write(&sealed, new.as_bytes()).unwrap();
    rustix::fs::fcntl_add_seals(&sealed, rustix::fs::SealFlags::WRITE).unwrap();
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&sealed));
    std::os::unix::fs::symlink(path, args.boot.join(SETTINGS)).unwrap();
    run(&args).unwrap();
    assert!(std::fs::read_to_string(&config).unwrap().contains("n2"));
    assert!(args.boot.join(SETTINGS).exists());
    // Edited on the board: the file on the boot partition does not replace it again.
    std::fs::write(&config, GOOD).unwrap();
    run(&args).unwrap();
    assert_eq!(std::fs::read_to_string(&config).unwrap(), GOOD);
    // Other settings are taken.
    std::fs::remove_file(args.boot.join(SETTINGS)).unwrap();
    std::fs::write(args.boot.join(SETTINGS), settings("n3")).unwrap();
    run(&args).unwrap();
    assert!(std::fs::read_to_string(&config).unwrap().contains("n3"));
    assert!(!args.boot.join(SETTINGS).exists());
}

#[test]
fn settings_with_another_ending_are_named() {
    for name in ["spoke.toml.txt", "SPOKE.TOML.TXT", "spoke (1).toml", "spoke.txt"] {
        let (_dir, args) = args();
        std::fs::write(args.boot.join(name), GOOD).unwrap();
        assert!(matches!(run(&args), Err(Failure::BadInput(e)) if e.contains(name) && e.contains("rename")), "{name}");
    }
    let (_dir, args) = args();
    for name in ["spoke.toml.example", FAULTS, "EFI"] {
        std::fs::write(args.boot.join(name), GOOD).unwrap();
    }
    assert!(matches!(run(&args), Err(Failure::BadInput(e)) if e.contains("put it there")));
}

#[test]
fn secrets_are_stored_apart_from_settings() {
    let (_dir, args) = args();
    let text = format!("{GOOD}[appliance.secrets]\ntoken = \"spk_abc\"\n");
    std::fs::write(args.boot.join(SETTINGS), text).unwrap();
    run(&args).unwrap();
    let secret = args.state.join("spoke/secrets/token");
    assert_eq!(std::fs::read_to_string(&secret).unwrap(), "spk_abc");
    assert_eq!(std::fs::metadata(&secret).unwrap().mode() & 0o7777, 0o600);
    assert_eq!(std::fs::metadata(secret.parent().unwrap()).unwrap().mode() & 0o7777, 0o700);
    assert!(!std::fs::read_to_string(args.state.join("config/spoke.toml")).unwrap().contains("spk_abc"));
}

#[test]
fn supervisor_owns_its_settings() {
    let (_dir, args) = args();
    let (directory, owner) = (args.state.join("config"), spoke_sys::sim::another_user());
    owner.take(&directory).unwrap();
    owner.take(&args.state.join(STATE)).unwrap();
    let text = format!("{GOOD}[appliance.secrets]\ntoken = \"spk_abc\"\n");
    std::fs::write(args.boot.join(SETTINGS), text).unwrap();
    run(&args).unwrap();
    let config = directory.join(SETTINGS);
    let secrets = args.state.join(STATE).join(SECRETS);
    for path in [config.clone(), secrets.clone(), secrets.join("token")] {
        assert_eq!(Owner::of(&path).unwrap(), owner, "{}", path.display());
    }
    // An editor creates a new file, owned by root.
    std::fs::remove_file(&config).unwrap();
    std::fs::write(&config, GOOD).unwrap();
    run(&args).unwrap();
    assert_eq!(Owner::of(&config).unwrap(), owner);
}

#[test]
fn links_of_the_supervisors_user_get_no_secret_and_no_mode() {
    let (dir, args) = args();
    let (state, owner, own) = (args.state.join(STATE), spoke_sys::sim::another_user(), args.state.join("ssh"));
    for directory in [&state, &args.state.join("config")] {
        owner.take(directory).unwrap();
    }
    std::fs::set_permissions(&own, std::os::unix::fs::PermissionsExt::from_mode(0o750)).unwrap();
    std::os::unix::fs::symlink(&own, state.join(SECRETS)).unwrap();
    let text = format!("{GOOD}[appliance.secrets]\nauthorized_keys = \"ssh-ed25519 attacker\"\n");
    std::fs::write(args.boot.join(SETTINGS), text).unwrap();
    assert!(run(&args).is_err(), "it says so");
    assert_eq!(std::fs::read_dir(&own).unwrap().count(), 0);
    assert_eq!(std::fs::metadata(&own).unwrap().mode() & 0o7777, 0o750);
    // The settings' own name as a link: what it leads to keeps its owner.
    let shadow = dir.path().join("shadow");
    write_atomic(&shadow, b"root's", true).unwrap();
    let config = args.state.join("config").join(SETTINGS);
    std::os::unix::fs::symlink(&shadow, &config).unwrap();
    let _ = run(&args);
    assert_eq!(
        (Owner::of(&shadow).unwrap(), std::fs::read(&shadow).unwrap()),
        (Owner::of(&own).unwrap(), b"root's".to_vec())
    );
}

#[test]
fn pipe_in_place_of_the_settings_does_not_hold_the_boot() {
    let (_dir, args) = args();
    let fifo = args.state.join("config").join(SETTINGS);
    let made = std::process::Command::new("mkfifo").arg(&fifo).status().unwrap();
    assert!(made.success());
    run(&args).unwrap();
}

#[test]
fn settings_without_end_are_read_within_a_bound() {
    let (_dir, args) = args();
    let file = std::fs::File::create(args.boot.join(SETTINGS)).unwrap();
    // Sparse: more than this machine's memory.
    file.set_len(1 << 42).unwrap();
    assert!(matches!(run(&args), Err(Failure::BadInput(e)) if e.contains("262144")));
}

#[test]
fn settings_that_cannot_run_are_not_taken() {
    let (_dir, args) = args();
    let text = format!(
        "{GOOD}[[interface]]\nname = \"wg0\"\n[agent]\nenabled = true\nsecret = \"file:/var/lib/spoke/agent.secret\"\n"
    );
    std::fs::write(args.boot.join(SETTINGS), &text).unwrap();
    assert!(matches!(run(&args), Err(Failure::BadInput(_))));
    let faults = std::fs::read_to_string(args.boot.join(FAULTS)).unwrap();
    assert!(faults.contains("agent.secret"), "{faults}");
    // The secret is on the device from earlier settings.
    std::fs::create_dir_all(args.state.join("spoke")).unwrap();
    std::fs::write(args.state.join("spoke/agent.secret"), "x").unwrap();
    run(&args).unwrap();
}

#[test]
fn faults_are_written_to_the_partition() {
    let (_dir, args) = args();
    std::fs::write(
        args.boot.join(SETTINGS),
        "[node]\nid = \"bad id\"\nstate_dri = \"/x\"\n[appliance]\npassword = \"x\"\n",
    )
    .unwrap();
    assert!(matches!(run(&args), Err(Failure::BadInput(_))));
    let text = std::fs::read_to_string(args.boot.join(FAULTS)).unwrap();
    for key in ["node.id", "state_dri", "appliance.password"] {
        assert!(text.contains(key), "{key}: {text}");
    }
    assert!(args.boot.join(SETTINGS).exists(), "a file with faults stays");
    std::fs::write(args.state.join("config/spoke.toml"), GOOD).unwrap();
    run(&args).unwrap();
    assert_eq!(std::fs::read_to_string(args.state.join("config/spoke.toml")).unwrap(), GOOD);
}
