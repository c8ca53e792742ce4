//! The directories of the pins: what other users of the machine can do there, and what dead daemons left there.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount, umount};
use nix::sys::signal::Signal;
use retry_testbed::daemon::Daemon;
use retry_testbed::net::fabric::{Fabric, Host, INTERFACE};
use retry_testbed::scene::{binary, flags, is_root, two_hosts};
use tempfile::TempDir;

/// Another user of the machine.
const USER: u32 = 65_534;
/// Long enough for a busy machine; nothing waits so long when it works.
const PATIENCE: Duration = Duration::from_secs(20);

/// A BPF file system of the test's own, in which every user may make directories, as `mount -t bpf` does by default.
struct Bpffs {
    directory: TempDir,
}

impl Bpffs {
    fn mount() -> Self {
        let directory = TempDir::new().expect("a directory");
        // Others have to reach what is mounted there.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("a mode");
        let bpffs = Self { directory };
        fs::create_dir(bpffs.path()).expect("a directory");
        mount(Some("bpf"), &bpffs.path(), Some("bpf"), MsFlags::empty(), Some("mode=1777")).expect("a BPF file system");
        bpffs
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("bpf")
    }

    /// The directory that the daemon is told.
    fn root(&self) -> PathBuf {
        self.path().join("retry-endpoint")
    }

    fn flag(&self) -> String {
        self.root().display().to_string()
    }

    /// The names of the directories of pins.
    fn names(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.root()) else { return Vec::new() };
        let mut names: Vec<_> =
            entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        if let Err(error) = umount(&self.path()) {
            eprintln!("{} is left mounted: {error}", self.path().display());
        }
    }
}

/// Runs a command as another user.
fn as_user(argv: &[&dyn AsRef<OsStr>]) -> Output {
    let mut command = Command::new(argv[0].as_ref());
    command.args(argv[1..].iter().map(|word| word.as_ref())).uid(USER).gid(USER);
    command.output().expect("a program of the base system")
}

/// The directory of a host's fabric interface.
fn name_of(host: &Host) -> String {
    format!("{INTERFACE}-{}", host.ns.inode().expect("an inode"))
}

/// A symbolic link where a directory of pins belongs, or the whole directory, made by another user: nothing behind it is touched,
/// and the operator reads what to do.
#[test]
fn a_link_is_not_followed() {
    if !is_root("a_link_is_not_followed") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, _) = two_hosts(&fabric);
    let victim = TempDir::new().expect("a directory");
    let file = victim.path().join("RING");
    for of_root in [false, true] {
        fs::write(&file, "precious").expect("a file");
        let bpffs = Bpffs::mount();
        let (root, pins) = (bpffs.root(), bpffs.root().join(name_of(endpoint)));
        if of_root {
            fs::create_dir(victim.path().join(name_of(endpoint))).expect("a directory");
            fs::write(victim.path().join(name_of(endpoint)).join("RING"), "precious").expect("a file");
            assert!(as_user(&[&"ln", &"-s", &victim.path(), &root]).status.success());
        } else {
            assert!(as_user(&[&"mkdir", &"-m", &"755", &root]).status.success());
            assert!(as_user(&[&"ln", &"-s", &victim.path(), &pins]).status.success());
        }
        let started = Daemon::start(&binary(), &endpoint.ns, &flags("native", &["-bpffs", &bpffs.flag()]));
        let error = format!("{:#}", started.map(drop).expect_err("refused"));
        assert!(file.exists(), "the file behind the link is gone\n{error}");
        if of_root {
            assert!(victim.path().join(name_of(endpoint)).join("RING").exists(), "it is gone\n{error}");
        }
        let told = error.lines().find(|line| line.contains("-bpffs")).unwrap_or_default();
        assert!(told.contains(&bpffs.flag()), "{error}");
        assert!(told.contains(if of_root { "symbolic link" } else { "belongs to user 65534" }), "{told}");
        assert!(told.contains("remove it"), "{told}");
    }
}

/// A directory that another user made first is refused; with `-xdp auto` the daemon serves by its socket and says why.
#[test]
fn a_directory_of_another_user_is_refused() {
    if !is_root("a_directory_of_another_user_is_refused") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, _) = two_hosts(&fabric);
    let bpffs = Bpffs::mount();
    assert!(as_user(&[&"mkdir", &"-m", &"777", &bpffs.root()]).status.success());
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags("auto", &["-bpffs", &bpffs.flag()])).expect("a daemon");
    let metrics = daemon.metrics().expect("a scrape");
    assert_eq!(metrics.state("bre_xdp_mode", "reason").as_deref(), Some("bpffs"));
    let (_, ready) = daemon.get("/readyz").expect("an answer");
    assert!(ready.contains("belongs to user 65534") && ready.contains("remove it"), "{ready}");
    assert_eq!(bpffs.names(), [""; 0], "nothing is made there");
}

/// No other user can open a directory of pins, so none can hold its lock, and what a daemon of before left readable is closed.
#[test]
fn another_user_cannot_hold_the_lock() {
    if !is_root("another_user_cannot_hold_the_lock") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, _) = two_hosts(&fabric);
    let bpffs = Bpffs::mount();
    // As earlier versions of the daemon made them.
    let pins = bpffs.root().join(name_of(endpoint));
    for directory in [&bpffs.root(), &pins] {
        fs::create_dir(directory).expect("a directory");
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).expect("a mode");
    }
    let flag = bpffs.flag();
    let flags = flags("native", &["-bpffs", &flag]);
    let mut daemon = Daemon::start(&binary(), &endpoint.ns, &flags).expect("a daemon");
    for directory in [&bpffs.root(), &pins] {
        let found = fs::metadata(directory).expect("it is there");
        assert_eq!((found.mode() & 0o7777, found.uid()), (0o700, 0), "{}", directory.display());
    }
    daemon.child().signal(Signal::SIGKILL).expect("it dies");
    daemon.wait().expect("it ends");
    assert!(pins.join("RING").exists(), "a killed daemon leaves its pins");
    let mut holder = Command::new("flock");
    holder.args([OsStr::new("--nonblock"), pins.as_os_str(), OsStr::new("sleep"), OsStr::new("60")]);
    let mut holder = holder.uid(USER).gid(USER).spawn().expect("util-linux");
    let refused = Instant::now();
    while holder.try_wait().expect("a child").is_none() && refused.elapsed() < Duration::from_secs(2) {
        std::thread::sleep(Duration::from_millis(10));
    }
    let successor = Daemon::start(&binary(), &endpoint.ns, &flags);
    let _ = holder.kill();
    let ended = holder.wait().expect("a child");
    successor.expect("a successor takes the pins over");
    assert!(!ended.success(), "it cannot open the directory");
}

/// The daemon mounts the BPF file system itself: only root gets in.
#[test]
fn the_mount_is_roots_own() {
    if !is_root("the_mount_is_roots_own") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, _) = two_hosts(&fabric);
    // A mount namespace in which nothing is mounted there.
    let directory = TempDir::new().expect("a directory");
    let wrapper = directory.path().join("retry-endpoint");
    let script = format!(
        "#!/bin/sh\nexec unshare --mount sh -c 'while umount /sys/fs/bpf 2>/dev/null; do :; done; exec \"$@\"' sh {} \"$@\"\n",
        binary().display()
    );
    fs::write(&wrapper, script).expect("a script");
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).expect("a mode");
    let daemon = Daemon::start(&wrapper, &endpoint.ns, &flags("native", &[])).expect("a daemon");
    let seen = Path::new("/proc").join(daemon.pid().to_string()).join("root/sys/fs/bpf");
    assert!(seen.join("retry-endpoint").join(name_of(endpoint)).join("RING").exists(), "it pins there");
    assert_eq!(fs::metadata(&seen).expect("mounted").mode() & 0o777, 0o700);
}

fn start<'a>(fabric: &'a Fabric, flags: &[&str]) -> Daemon<'a> {
    Daemon::start(&binary(), &two_hosts(fabric).0.ns, flags).expect("a daemon")
}

/// What a killed daemon left goes with its namespace; what a living daemon has stays, and so does what a killed one left where its
/// program is still attached.
#[test]
fn pins_of_what_is_gone_are_removed() {
    if !is_root("pins_of_what_is_gone_are_removed") {
        return;
    }
    let bpffs = Bpffs::mount();
    let flag = bpffs.flag();
    let flags = flags("native", &["-bpffs", &flag]);
    let fabric = || Fabric::flat(1500).expect("a fabric");
    let (living, left, gone) = (fabric(), fabric(), fabric());
    let names = [&living, &left, &gone].map(|fabric| name_of(two_hosts(fabric).0));
    let _daemon = start(&living, &flags);
    for fabric in [&left, &gone] {
        let mut killed = start(fabric, &flags);
        killed.leave();
        killed.child().signal(Signal::SIGKILL).expect("it dies");
        killed.wait().expect("it ends");
    }
    // What is not the daemon's stays whatever it is.
    let strange = bpffs.root().join("eth0-1");
    fs::create_dir(&strange).expect("a directory");
    fs::create_dir(strange.join("kept")).expect("a directory");
    drop(gone);
    // The kernel takes a namespace apart some time after its end.
    let deadline = Instant::now() + PATIENCE;
    let newcomer = fabric();
    loop {
        let daemon = start(&newcomer, &flags);
        let found = bpffs.names();
        for kept in [&names[0], &names[1], &name_of(two_hosts(&newcomer).0), &"eth0-1".to_owned()] {
            assert!(found.contains(kept), "{kept} is not among {found:?}\n{}", daemon.log());
        }
        if found.len() == 4 {
            assert!(daemon.log().contains(&names[2]), "it says what it removed\n{}", daemon.log());
            break;
        }
        assert!(Instant::now() < deadline, "{} is left: {found:?}\n{}", names[2], daemon.log());
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(strange.join("kept").exists());
    // Its interface is gone, the namespace stays.
    two_hosts(&left).0.ns.run(&["ip", "link", "delete", INTERFACE]).expect("it goes");
    drop(start(&newcomer, &flags));
    let mut kept = vec![names[0].clone(), "eth0-1".to_owned()];
    kept.sort();
    assert_eq!(bpffs.names(), kept);
}

/// The BPF file system takes no dots in names: those of interfaces are written in another way.
#[test]
fn an_interface_with_a_dot() {
    const DOTTED: &str = "eth0.100";
    if !is_root("an_interface_with_a_dot") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, _) = two_hosts(&fabric);
    let address = format!("{}/64", endpoint.addr);
    for argv in [
        &["ip", "link", "set", INTERFACE, "down"][..],
        &["ip", "link", "set", INTERFACE, "name", DOTTED],
        &["ip", "link", "set", DOTTED, "up"],
        &["ip", "-6", "addr", "replace", &address, "dev", DOTTED, "nodad"],
    ] {
        endpoint.ns.run(argv).expect("it is done");
    }
    let bpffs = Bpffs::mount();
    let flag = bpffs.flag();
    let flags = flags("native", &["-bpffs", &flag, "-mc-iface", DOTTED, "-egress-iface", DOTTED]);
    let mut daemon = Daemon::start(&binary(), &endpoint.ns, &flags).expect("a daemon");
    let inode = endpoint.ns.inode().expect("an inode");
    assert_eq!(bpffs.names(), [format!("eth0%2E100-{inode}")]);
    assert!(bpffs.root().join(format!("eth0%2E100-{inode}")).join("link-eth0%2E100").exists());
    assert!(daemon.end().expect("it ends").success());
    assert_eq!(bpffs.names(), [format!("eth0%2E100-{inode}")], "for the next daemon");
    assert!(daemon.run("detach", &[]).expect("it runs").status.success());
    assert_eq!(bpffs.names(), [""; 0]);
}
