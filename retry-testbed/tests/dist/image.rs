//! The image, unpacked and run by an OCI runtime: as its own user, with a root that cannot be written, and with the capabilities that
//! a pod grants.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use retry_testbed::daemon::{METRICS, http};
use retry_testbed::net::fabric::{Fabric, Host};
use retry_testbed::net::netns::{ChildGuard, Netns};
use retry_testbed::scene::{Pins, is_root, two_hosts};
use serde_json::{Value, json};

use crate::artifacts::{file, said};
use crate::scene::Listener;

/// User and group of the field's chart.
const USER: u32 = 65_532;
const RIGHTS: &[&str] = &["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON", "CAP_NET_RAW"];

fn read(path: &Path) -> Value {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).expect("JSON")
}

/// Unpacks the image's one layer to `root` below the directory; its configuration.
fn unpack(directory: &Path) -> Value {
    let layout = directory.join("layout");
    let root = directory.join("rootfs");
    for made in [&layout, &root] {
        fs::create_dir(made).expect("a directory");
    }
    said("tar", &["-xf", &file("_oci.tar").display().to_string()], &layout);
    assert_eq!(read(&layout.join("oci-layout"))["imageLayoutVersion"], "1.0.0");
    let blob = |descriptor: &Value| -> PathBuf {
        let digest = descriptor["digest"].as_str().expect("a digest").strip_prefix("sha256:").expect("of SHA-256");
        let path = layout.join("blobs/sha256").join(digest);
        let sum = said("sha256sum", &[&path.display().to_string()], &layout);
        assert!(sum.starts_with(digest), "{descriptor}: {sum}");
        assert_eq!(descriptor["size"], fs::metadata(&path).expect("a blob").len());
        path
    };
    let manifest = read(&blob(&read(&layout.join("index.json"))["manifests"][0]));
    let layer = blob(&manifest["layers"][0]).display().to_string();
    said("tar", &["--xattrs", "--xattrs-include=*", "-xzpf", &layer], &root);
    read(&blob(&manifest["config"]))
}

/// A container that is ended with this value.
struct Container {
    directory: tempfile::TempDir,
    name: String,
    process: ChildGuard,
}

impl Container {
    fn run(endpoint: &Host, pins: &str, rights: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        // The container's user walks through it.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("ours");
        let image = unpack(directory.path());
        assert_eq!(image["config"]["User"], format!("{USER}:{USER}"));
        let entry = image["config"]["Entrypoint"][0].as_str().expect("a program");
        let options = [
            "-bpffs",
            "/bpf",
            "-cache-memory",
            "16m",
            "-cache-memory-long",
            "16m",
            "-metrics-addr",
            METRICS,
            "-mc-rejoin-interval",
            "1s",
        ];
        let arguments = [&[entry], &options[..]].concat();
        let namespaces: Vec<Value> =
            ["pid", "ipc", "uts", "mount", "cgroup"].iter().map(|kind| json!({ "type": kind })).collect();
        let bundle = json!({
            "ociVersion": "1.0.2",
            "root": { "path": "rootfs", "readonly": true },
            "process": {
                "user": { "uid": USER, "gid": USER },
                "args": arguments,
                "cwd": "/",
                "noNewPrivileges": true,
                "capabilities": { "bounding": rights, "permitted": rights, "effective": rights },
            },
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc" },
                { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"] },
                { "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"] },
                { "destination": "/bpf", "type": "none", "source": pins, "options": ["bind", "rw"] },
            ],
            "linux": { "namespaces": namespaces },
        });
        fs::write(directory.path().join("config.json"), bundle.to_string()).expect("written");
        let name = format!("retry-dist{}", directory.path().file_name().unwrap_or_default().display());
        let mut command = crun(directory.path());
        command.args(["run", "--bundle"]).arg(directory.path()).arg(&name);
        let log = fs::File::create(directory.path().join("log")).expect("a file");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a handle")).stderr(log);
        let process = endpoint.ns.spawn(command).expect("crun");
        let mut container = Self { directory, name, process };
        container.await_ready(&endpoint.ns);
        container
    }

    fn await_ready(&mut self, ns: &Netns) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !matches!(http::get(ns, METRICS.parse().expect("an address"), "/readyz"), Ok((200, _))) {
            let ended = self.process.try_wait().expect("a status");
            assert!(ended.is_none() && Instant::now() < deadline, "{ended:?}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the container's log:\n{}", self.log());
        }
        let _ = crun(self.directory.path()).args(["delete", "--force", &self.name]).status();
    }
}

/// The runtime, with its state in the directory. It refuses control groups of both versions side by side, and sees the second.
fn crun(directory: &Path) -> Command {
    const ALONE: &str = "umount -l /sys/fs/cgroup || true; mount -t cgroup2 none /sys/fs/cgroup; exec crun \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-ec", ALONE, "sh", "--cgroup-manager=disabled", "--root"]).arg(directory.join("state"));
    command
}

/// A directory of pins that belongs to the container's user.
fn pins(label: &str) -> Pins {
    let pins = Pins::new(label);
    fs::create_dir(pins.name()).expect("bpffs");
    chown(pins.name(), Some(USER), Some(USER)).expect("root");
    fs::set_permissions(pins.name(), fs::Permissions::from_mode(0o700)).expect("root");
    pins
}

#[test]
fn the_image_answers_from_the_kernel_with_the_rights_of_a_pod() {
    if !is_root("the_image_answers_from_the_kernel_with_the_rights_of_a_pod") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let pins = pins("image");
    let container = Container::run(endpoint, pins.name(), RIGHTS);
    let listener = Listener::of_a_new_frame(endpoint, client);
    listener.is_answered_by_the_kernel();
    let own = fs::read_dir(pins.name()).expect("bpffs").next().expect("a directory of pins").expect("an entry");
    assert_eq!(own.metadata().expect("there").uid(), USER);
    assert!(!container.log().contains("WARN"), "{}", container.log());
}

/// In a pod without capabilities it answers by its socket: file capabilities that are not granted are no reason not to start.
#[test]
fn the_image_starts_without_any_right() {
    if !is_root("the_image_starts_without_any_right") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, _) = two_hosts(&fabric);
    let pins = pins("image-bare");
    let container = Container::run(endpoint, pins.name(), &[]);
    let (_, text) = http::get(&endpoint.ns, METRICS.parse().expect("an address"), "/readyz").expect("it answers");
    assert!(text.contains("CAP_BPF"), "{text}\n{}", container.log());
}

/// Each capability of the unit is there for a reason: what the daemon says where it is missing.
#[test]
fn each_capability_is_needed() {
    if !is_root("each_capability_is_needed") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, _) = two_hosts(&fabric);
    for (missing, says) in [
        ("CAP_BPF", "it needs CAP_BPF"),
        ("CAP_NET_ADMIN", "it needs CAP_BPF, CAP_NET_ADMIN"),
        ("CAP_PERFMON", "the BPF_PROG_LOAD syscall returned Permission denied"),
        ("CAP_NET_RAW", "it needs CAP_NET_RAW"),
    ] {
        let pins = pins("capability");
        let rights: Vec<&str> = RIGHTS.iter().copied().filter(|right| *right != missing).collect();
        let container = Container::run(endpoint, pins.name(), &rights);
        retry_testbed::scene::eventually(says, || container.log().contains(says));
    }
}
