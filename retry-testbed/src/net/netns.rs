//! Network namespaces that live as long as their value: made with `ip netns add`, deleted on drop, also when a test panics.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Read as _, Write as _},
    os::{fd::AsFd, unix::process::CommandExt},
    path::Path,
    process::{Child, Command, Output, Stdio},
    sync::{
        Once,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sched::{CloneFlags, setns},
    sys::signal::{SigSet, Signal, kill},
    unistd::Pid,
};

/// Programs that a fabric needs, each with the Debian package that brings it.
pub const TOOLS: [(&str, &str); 3] = [("ip", "iproute2"), ("ethtool", "ethtool"), ("nft", "nftables")];

/// Where `ip netns` keeps its names.
const NETNS_DIRECTORY: &str = "/run/netns";
const PREFIX: &str = "rt-";

static COUNTER: AtomicU32 = AtomicU32::new(0);
static STALE: Once = Once::new();

/// One network namespace with `lo` up and duplicate address detection off.
#[derive(Debug)]
pub struct Netns {
    name: String,
    handle: File,
}

impl Netns {
    /// Makes a namespace named `rt-<pid>-<counter>-<label>`.
    ///
    /// # Errors
    /// Not root, or `ip` is missing: the message says which.
    pub fn new(label: &str) -> Result<Self> {
        ensure!(nix::unistd::geteuid().is_root(), "network namespaces need root");
        STALE.call_once(remove_stale);
        let counter = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{counter}-{label}", std::process::id());
        host_command(&["ip", "netns", "add", &name])?;
        let handle = match File::open(Path::new(NETNS_DIRECTORY).join(&name)) {
            Ok(handle) => handle,
            Err(error) => {
                delete(&name);
                return Err(error).with_context(|| format!("open namespace {name}"));
            }
        };
        let netns = Self { name, handle };
        // Addresses are usable at once, and nothing but the test's own traffic is on the wire.
        for interface in ["all", "default"] {
            netns.quiet_ipv6(interface)?;
        }
        netns.run(&["ip", "link", "set", "lo", "up"])?;
        Ok(netns)
    }

    /// The name under which `ip netns` knows it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Switches duplicate address detection, router solicitations and autoconfiguration off for one interface (or `all`, `default`).
    ///
    /// # Errors
    /// The interface does not exist.
    pub fn quiet_ipv6(&self, interface: &str) -> Result<()> {
        for (key, value) in [
            ("disable_ipv6", "0"),
            ("accept_dad", "0"),
            ("dad_transmits", "0"),
            ("accept_ra", "0"),
            ("autoconf", "0"),
            ("router_solicitations", "0"),
        ] {
            self.sysctl(&format!("net/ipv6/conf/{interface}/{key}"), value)?;
        }
        Ok(())
    }

    /// Writes one sysctl of this namespace; `key` is a path under `/proc/sys`.
    ///
    /// # Errors
    /// The kernel does not have the key or refuses the value.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys").join(key);
        self.enter(|| std::fs::write(&path, value)).with_context(|| format!("write {value} to {}", path.display()))
    }

    /// A command that will run inside the namespace: own process group, no inherited signal mask.
    ///
    /// Only the network namespace changes: a bpffs that is mounted outside stays visible.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Result<Command> {
        let mut command = Command::new(program);
        self.attach(&mut command)?;
        Ok(command)
    }

    fn attach(&self, command: &mut Command) -> Result<()> {
        let handle = self.handle.try_clone()?;
        let hook = move || {
            setns(handle.as_fd(), CloneFlags::CLONE_NEWNET)?;
            // The demo blocks signals to wait for them; a child must hear its own.
            SigSet::all().thread_unblock()?;
            Ok(())
        };
        // SAFETY: the hook runs between fork and exec and makes two system calls, without allocation or locks.
        unsafe { command.pre_exec(hook) };
        // Ctrl-C on the terminal is for the parent, which then ends its children in order.
        command.process_group(0);
        Ok(())
    }

    /// Runs a short command inside and returns what it wrote to stdout.
    ///
    /// # Errors
    /// It cannot be started, or ends with another code than 0: the message holds its stderr.
    pub fn run(&self, argv: &[&str]) -> Result<String> {
        let (program, rest) = argv.split_first().context("no command given")?;
        let mut command = self.command(program)?;
        let output = command.args(rest).stdin(Stdio::null()).output();
        finish(argv, output)
    }

    /// As [`Netns::run`], with `input` on the command's stdin.
    ///
    /// # Errors
    /// As [`Netns::run`].
    pub fn feed(&self, argv: &[&str], input: &str) -> Result<String> {
        let (program, rest) = argv.split_first().context("no command given")?;
        let mut command = self.command(program)?;
        command.args(rest).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = command.spawn().and_then(|mut child| {
            // Who ends without reading to the end tells why on stderr, which is the better message.
            let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes()));
            let output = child.wait_with_output()?;
            if output.status.success() { written.map(|()| output) } else { Ok(output) }
        });
        finish(argv, output)
    }

    /// Runs a closure on a fresh thread inside the namespace and returns its value; a panic passes through.
    ///
    /// Sockets opened inside belong to the namespace for good and can be used from any thread.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(self.handle.as_fd(), CloneFlags::CLONE_NEWNET)
                    .expect("the handle is an open namespace and we are root");
                work()
            });
            match inside.join() {
                Ok(value) => value,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Starts a child inside the namespace; it is ended when the returned value is dropped.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn spawn(&self, mut command: Command) -> Result<ChildGuard> {
        self.attach(&mut command)?;
        let child = command.spawn().with_context(|| format!("start {}", command.get_program().to_string_lossy()))?;
        Ok(ChildGuard { child })
    }

    /// Index of an interface of this namespace.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn interface_index(&self, interface: &str) -> Result<u32> {
        self.enter(|| nix::net::if_::if_nametoindex(interface))
            .with_context(|| format!("interface {interface} in {}", self.name))
    }

    /// Another handle of the namespace, for `setns` on a thread that outlives this value's borrow.
    ///
    /// # Errors
    /// Out of file descriptors.
    pub fn handle(&self) -> Result<File> {
        Ok(self.handle.try_clone()?)
    }

    /// The inode of the namespace, as programs print it in paths and logs.
    ///
    /// # Errors
    /// The handle cannot be read.
    pub fn inode(&self) -> Result<u64> {
        Ok(nix::sys::stat::fstat(self.handle.as_fd())?.st_ino)
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        delete(&self.name);
    }
}

/// A child process that is ended (SIGTERM, after three seconds SIGKILL) when this is dropped.
#[derive(Debug)]
pub struct ChildGuard {
    child: Child,
}

impl ChildGuard {
    /// The process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The child itself, for its pipes.
    pub fn child_mut(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Its exit status if it has ended.
    ///
    /// # Errors
    /// The kernel refuses the wait.
    pub fn try_wait(&mut self) -> io::Result<Option<std::process::ExitStatus>> {
        self.child.try_wait()
    }

    /// Sends a signal to this child and to no other process. SIGSTOP has stopped every thread on return.
    ///
    /// # Errors
    /// The child has ended and been waited for, or does not stop.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).context("process id")?;
        kill(Pid::from_raw(pid), signal)?;
        // A thread stops when it is scheduled next: until then it may still answer.
        let deadline = Instant::now() + Duration::from_secs(5);
        while signal == Signal::SIGSTOP && !self.is_stopped()? {
            ensure!(Instant::now() < deadline, "process {pid} does not stop");
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Whether the kernel runs none of the child's threads.
    fn is_stopped(&self) -> Result<bool> {
        for entry in std::fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            // A thread may end while the directory is read.
            let status = std::fs::read_to_string(entry?.path().join("stat")).unwrap_or_default();
            // The name before the state stands in parentheses and may hold any character.
            let state = status.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
            if !matches!(state, Some('T' | 'Z') | None) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Kills the child, if it has not ended, and waits for it.
    pub fn kill(&mut self) {
        // One that has ended needs neither.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits for the end of the child and reads what it wrote until then.
    ///
    /// # Errors
    /// Its pipes cannot be read.
    pub fn output(mut self) -> Result<Output> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        if let Some(mut pipe) = self.child.stdout.take() {
            pipe.read_to_end(&mut stdout)?;
        }
        if let Some(mut pipe) = self.child.stderr.take() {
            pipe.read_to_end(&mut stderr)?;
        }
        Ok(Output { status: self.child.wait()?, stdout, stderr })
    }

    /// Ends the child: SIGTERM, then SIGKILL when it has not ended within `patience`. Returns its status.
    ///
    /// # Errors
    /// The kernel refuses the wait.
    pub fn end(&mut self, patience: Duration) -> Result<std::process::ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        self.signal(Signal::SIGTERM)?;
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(5));
        }
        self.child.kill()?;
        Ok(self.child.wait()?)
    }
}

impl Drop for ChildGuard {
    fn drop(&mut self) {
        if let Err(error) = self.end(Duration::from_secs(3)) {
            eprintln!("process {} may still run: {error:#}", self.child.id());
        }
    }
}

/// Runs a short command outside any test namespace and returns what it wrote to stdout.
///
/// # Errors
/// As [`Netns::run`].
pub fn host_command(argv: &[&str]) -> Result<String> {
    let (program, rest) = argv.split_first().context("no command given")?;
    let output = Command::new(program).args(rest).stdin(Stdio::null()).process_group(0).output();
    finish(argv, output)
}

fn finish(argv: &[&str], output: io::Result<Output>) -> Result<String> {
    let program = argv.first().copied().unwrap_or_default();
    let output = output.with_context(|| {
        let package = TOOLS.iter().find(|(tool, _)| *tool == program);
        match package {
            Some((tool, package)) => format!("run {tool} (Debian package {package})"),
            None => format!("run {program}"),
        }
    })?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{}: {}: {}", argv.join(" "), output.status, stderr.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn delete(name: &str) {
    if let Err(error) = host_command(&["ip", "netns", "delete", name]) {
        eprintln!("namespace {name} is left behind: {error:#}");
    }
}

/// The process that made a namespace, if its name is one of ours.
fn maker(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split('-').next()?.parse().ok()
}

/// Deletes namespaces of runs that were killed before they could, and ends what still runs inside them.
fn remove_stale() {
    let Ok(entries) = std::fs::read_dir(NETNS_DIRECTORY) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let dead = maker(&name).is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists());
        if !dead {
            continue;
        }
        let inside = host_command(&["ip", "netns", "pids", &name]).unwrap_or_default();
        for pid in inside.lines().filter_map(|line| line.trim().parse().ok()) {
            // It may have ended by itself meanwhile: then there is nothing to do.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        delete(&name);
    }
}

#[cfg(test)]
mod tests {
    use super::maker;

    #[test]
    fn only_our_names_have_a_maker() {
        assert_eq!(maker("rt-4711-0-endpoint"), Some(4711));
        assert_eq!(maker("rt-x-0-endpoint"), None);
        assert_eq!(maker("production"), None);
        assert_eq!(maker("4711-0"), None);
    }
}
