//! A host to install on: this machine's file system below an overlay in memory, a systemd of its own as the first process, and the
//! network namespace of one host of a fabric.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use retry_testbed::net::netns::{ChildGuard, Netns};

/// How long systemd may take to start, on a busy machine.
const BOOTED: Duration = Duration::from_secs(60);
/// Lays the overlay out and becomes systemd in it; `$1` is a directory, `$2` a name, `$3` what is copied to `/root`.
///
/// The kernel's settings can be read and not written, as in a container: they are this machine's. `/dev` is its own, because
/// services make links there. bpffs is closed to all users but root, as systemd mounts it on a host.
const BOOT: &str = r#"
mount -t tmpfs none "$1" && mkdir "$1/upper" "$1/work" "$1/root" "$1/cgroup"
mount -t cgroup2 none "$1/cgroup" && mkdir "$1/cgroup/$2"
echo $$ > "$1/cgroup/$2/cgroup.procs" && umount "$1/cgroup"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
cd "$1/root"
mount -t tmpfs none run && mount -t tmpfs none tmp && mount -t tmpfs -o mode=755 none dev
for n in null zero full random urandom tty; do touch dev/$n && mount --bind /dev/$n dev/$n; done
mkdir dev/pts dev/shm && mount -t devpts -o newinstance,ptmxmode=666 none dev/pts && mount -t tmpfs none dev/shm
ln -s pts/ptmx dev/ptmx && ln -s /proc/self/fd dev/fd
mkdir -p units mnt && printf '[Unit]\nDescription=test\nRequires=basic.target\nAfter=basic.target\n' > units/default.target
# What acts on this machine's kernel, or wants its network.
for n in modprobe@.service systemd-modules-load.service apt-daily.timer apt-daily-upgrade.timer; do ln -s /dev/null units/$n; done
mount -t tmpfs -o mode=700 none root && cp $3 root/
exec unshare -p -C -u -i -f --kill-child sh -ec '
    mount -t proc none proc && mount --bind proc/sys proc/sys && mount -o remount,bind,ro proc/sys
    mount -t sysfs none sys && mount -t bpf -o mode=700 none sys/fs/bpf && mount -t cgroup2 none sys/fs/cgroup
    mount -o remount,ro sys
    pivot_root . mnt && umount -l mnt
    exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin SYSTEMD_UNIT_PATH=/units: /usr/lib/systemd/systemd --system
' < /dev/null
"#;
/// Removes the control group.
const REMOVE: &str = r#"
mount -t cgroup2 none "$1" && find "$1/$2" -depth -type d -exec rmdir {} ';'
! test -e "$1/$2"
"#;

/// The host.
pub(crate) struct Guest {
    directory: tempfile::TempDir,
    name: String,
    unshare: ChildGuard,
    console: PathBuf,
}

impl Guest {
    /// Boots it on the fabric's host, with these files in `/root`.
    pub(crate) fn boot(ns: &Netns, files: &[PathBuf]) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let over = directory.path().join("over");
        fs::create_dir(&over).expect("a directory");
        let console = directory.path().join("console");
        // Not by a process id: tests that run at the same time have namespaces of processes of their own.
        let name = format!("retry-dist{}", directory.path().file_name().unwrap_or_default().display());
        let files: Vec<_> = files.iter().map(|file| file.display().to_string()).collect();
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-ec", BOOT, "sh"]).arg(&over).args([&name, &files.join(" ")]);
        let log = fs::File::create(&console).expect("a file");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a handle")).stderr(log);
        let unshare = ns.spawn(command).expect("a process");
        let guest = Self { directory, name, unshare, console };
        let deadline = Instant::now() + BOOTED;
        // Degraded: a unit of this machine fails in namespaces, which is no matter here.
        while !["running", "degraded"].contains(&guest.try_run("systemctl is-system-running").trim()) {
            assert!(Instant::now() < deadline, "systemd is not up within {BOOTED:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
        guest
    }

    /// Its first process, out here.
    fn pid(&self) -> Option<String> {
        let parent = self.unshare.id();
        let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
        children.split_whitespace().next().map(str::to_owned)
    }

    fn command(&self, script: &str) -> Command {
        let pid = self.pid().unwrap_or_else(|| "0".to_owned());
        let mut command = Command::new("nsenter");
        command.args([
            "-t",
            &pid,
            "-m",
            "-p",
            "-C",
            "-u",
            "-i",
            "-n",
            "env",
            "-i",
            "HOME=/root",
            "DEBIAN_FRONTEND=noninteractive",
        ]);
        command.args(["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "sh", "-ec", &format!("cd /root\n{script}")]);
        command.stdin(Stdio::null());
        command
    }

    /// Runs shell commands on it as root, in `/root`; what they print.
    fn try_run(&self, script: &str) -> String {
        let output = self.command(script).output().expect("nsenter");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Likewise; they succeed.
    #[track_caller]
    pub(crate) fn run(&self, script: &str) -> String {
        let output = self.command(script).output().expect("nsenter");
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{}:\n{script}\n{out}{err}\n{}", output.status, self.journal());
        out.into_owned()
    }

    /// Whether they succeed.
    pub(crate) fn succeeds(&self, script: &str) -> bool {
        self.command(script).output().expect("nsenter").status.success()
    }

    /// A property of the service.
    pub(crate) fn value(&self, property: &str) -> String {
        self.try_run(&format!("systemctl show -p {property} --value retry-endpoint")).trim().to_owned()
    }

    /// What the service and systemd have logged of it.
    pub(crate) fn journal(&self) -> String {
        self.try_run("journalctl --no-pager --quiet --output=cat -u retry-endpoint | tail -n 60")
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the service's journal:\n{}", self.journal());
            eprintln!("the console:\n{}", fs::read_to_string(&self.console).unwrap_or_default());
        }
        // Everything in its namespace of processes ends with it.
        let _ = self.unshare.signal(Signal::SIGKILL);
        let mounted = self.directory.path().join("cgroup");
        let _ = fs::create_dir(&mounted);
        let removed = || remove(&mounted, &self.name);
        if !(0..50).any(|_| {
            removed() || {
                std::thread::sleep(Duration::from_millis(20));
                false
            }
        }) {
            eprintln!("the control group {} is left behind", self.name);
        }
    }
}

fn remove(mounted: &Path, name: &str) -> bool {
    let mut remove = Command::new("unshare");
    remove.args(["-m", "sh", "-ec", REMOVE, "sh"]).arg(mounted).arg(name).stderr(Stdio::null());
    remove.status().is_ok_and(|status| status.success())
}
