//! The real daemon in a namespace: started, awaited, scraped, ended, and its log kept for the day on which a test fails.

pub mod http;
mod metrics;

use std::{
    io::{BufRead as _, BufReader, Read},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{mount::MsFlags, sys::statfs};
use retry_userspace::parts::verify_log::Report;

pub use self::metrics::Metrics;
use crate::net::{
    fabric::INTERFACE,
    netns::{ChildGuard, Netns},
};

/// How long a start may take.
const READY: Duration = Duration::from_secs(30);
/// Environment variable with the path of the daemon's binary.
pub const BINARY_VARIABLE: &str = "RETRY_ENDPOINT_BIN";
/// Where bpffs belongs.
pub const BPFFS: &str = "/sys/fs/bpf";
/// Where the daemon's HTTP server listens, inside its namespace.
pub const METRICS: &str = "[::1]:9400";
/// Where it pins its maps unless it is told otherwise.
const PINS: &str = "/sys/fs/bpf/retry-endpoint";
/// Log lines that are kept.
const LOG_LINES: usize = 2_000;

/// Processor time of the daemon's process and of its programs in the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuTime {
    /// Time that the process's live threads ran.
    pub process: Duration,
    /// Run time of its BPF programs; counted only while a [`count_program_time`] value lives.
    pub programs: Duration,
    /// Runs of its BPF programs, counted likewise.
    pub runs: u64,
}

/// A daemon that runs until this is dropped. Before it is ended its frame log is checked, and a finding is a failure.
#[derive(Debug)]
pub struct Daemon<'a> {
    child: ChildGuard,
    binary: PathBuf,
    /// Where its pins are, if it has any.
    pins: PathBuf,
    /// The rings are so small that the sums of all records are cheap.
    is_small: bool,
    /// It was ready once: its pins are all there.
    was_ready: bool,
    ns: &'a Netns,
    metrics: SocketAddr,
    log: Lines,
    stdout: Lines,
    /// They end with the pipes.
    readers: Vec<JoinHandle<()>>,
    /// What it leaves in the kernel stays when this is dropped.
    is_left: bool,
    interface: String,
    bpffs: PathBuf,
}

/// Lines of output, shared with the thread that reads them.
type Lines = Arc<Mutex<Vec<String>>>;

impl<'a> Daemon<'a> {
    /// The binary named by `RETRY_ENDPOINT_BIN`.
    ///
    /// # Errors
    /// The variable is not set, or names no file.
    pub fn binary() -> Result<PathBuf> {
        let path = std::env::var_os(BINARY_VARIABLE)
            .map(PathBuf::from)
            .with_context(|| format!("{BINARY_VARIABLE} does not name the daemon's binary"))?;
        ensure!(path.is_file(), "{BINARY_VARIABLE}: no file {}", path.display());
        Ok(path)
    }

    /// Starts the daemon with these flags (`-metrics-addr` is [`METRICS`] unless they set it, to what answers there, too) and waits until `/readyz` says 200.
    ///
    /// # Errors
    /// It cannot be started, ends, or is not ready in 30 seconds: the message holds its log.
    pub fn start(binary: &Path, ns: &'a Netns, flags: &[impl AsRef<str>]) -> Result<Self> {
        Self::start_within(READY, binary, ns, flags)
    }

    /// As [`Daemon::start`], for a start that takes longer: the kernel clears the memory of a large log.
    ///
    /// # Errors
    /// As [`Daemon::start`].
    pub fn start_within(patience: Duration, binary: &Path, ns: &'a Netns, flags: &[impl AsRef<str>]) -> Result<Self> {
        Self::launch(binary, ns, flags)?.ready(patience)
    }

    /// Waits until `/readyz` says 200.
    fn ready(mut self, patience: Duration) -> Result<Self> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait()? {
                self.read_to_the_end();
                bail!("the daemon ended: {status}\n{}", self.log());
            }
            match self.get("/readyz") {
                Ok((200, _)) => {
                    self.was_ready = true;
                    return Ok(self);
                }
                answer if Instant::now() > deadline => {
                    bail!("the daemon is not ready: {answer:?}\n{}", self.log())
                }
                _ => thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    /// As [`Daemon::start`] without waiting: for starts that are meant to fail.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn launch(binary: &Path, ns: &'a Netns, flags: &[impl AsRef<str>]) -> Result<Self> {
        Self::launch_by(Command::new(binary), binary, ns, flags)
    }

    /// As [`Daemon::start`], by a command that starts `binary` with the arguments that it gets.
    ///
    /// # Errors
    /// As [`Daemon::start`].
    pub fn start_by(command: Command, binary: &Path, ns: &'a Netns, flags: &[impl AsRef<str>]) -> Result<Self> {
        Self::launch_by(command, binary, ns, flags)?.ready(READY)
    }

    fn launch_by(mut command: Command, binary: &Path, ns: &'a Netns, flags: &[impl AsRef<str>]) -> Result<Self> {
        mount_bpffs()?;
        if flags.iter().any(|flag| flag.as_ref() == "1h") {
            pass_the_full_hour()?;
        }
        let own_address = flags.iter().any(|flag| flag.as_ref() == "-metrics-addr");
        command
            .args(flags.iter().map(AsRef::as_ref))
            .args(if own_address { &[][..] } else { &["-metrics-addr", METRICS] })
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = ns.spawn(command)?;
        let (log, lines) = (Lines::default(), Lines::default());
        let pipes = child.child_mut();
        let mut readers = Vec::new();
        if let Some(stdout) = pipes.stdout.take() {
            readers.push(keep(stdout, vec![Arc::clone(&log), Arc::clone(&lines)]));
        }
        if let Some(stderr) = pipes.stderr.take() {
            readers.push(keep(stderr, vec![Arc::clone(&log)]));
        }
        let value = |name: &str| {
            let at = flags.iter().rposition(|flag| flag.as_ref() == name)?;
            flags.get(at + 1).map(AsRef::as_ref)
        };
        let interface = value("-mc-iface").unwrap_or(INTERFACE);
        // As the daemon writes it: bpffs refuses dots.
        let bpffs = Path::new(value("-bpffs").unwrap_or(PINS));
        let pins = bpffs.join(format!("{}-{}", interface.replace('.', "%2E"), ns.inode()?));
        Ok(Self {
            child,
            binary: binary.to_owned(),
            pins,
            is_small: value("-cache-memory") == Some("16m"),
            was_ready: false,
            ns,
            metrics: METRICS.parse()?,
            log,
            stdout: lines,
            readers,
            is_left: false,
            interface: interface.to_owned(),
            bpffs: bpffs.to_owned(),
        })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The child process.
    pub fn child(&mut self) -> &mut ChildGuard {
        &mut self.child
    }

    /// What it has logged, on stderr and on stdout.
    #[must_use]
    pub fn log(&self) -> String {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).join("\n")
    }

    /// The lines among these that came on stdout.
    #[must_use]
    pub fn stdout(&self) -> Vec<String> {
        self.stdout.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A GET on its HTTP server.
    ///
    /// # Errors
    /// As [`http::get`].
    pub fn get(&self, path: &str) -> Result<(u16, String)> {
        http::get(self.ns, self.metrics, path)
    }

    /// A POST without a body on its HTTP server.
    ///
    /// # Errors
    /// As [`http::get`].
    pub fn post(&self, path: &str) -> Result<(u16, String)> {
        http::request(self.ns, self.metrics, "POST", path)
    }

    /// Scrapes `/metrics`.
    ///
    /// # Errors
    /// As [`http::get`], or another status than 200.
    pub fn metrics(&self) -> Result<Metrics> {
        let (status, text) = self.get("/metrics")?;
        ensure!(status == 200, "/metrics answered {status}: {text}");
        Ok(Metrics::parse(&text))
    }

    /// Processor time used so far.
    ///
    /// # Errors
    /// It has ended.
    pub fn cpu_time(&self) -> Result<CpuTime> {
        let pid = self.child.id();
        let process = process_time(pid)?;
        let (programs, runs) = program_time(pid)?;
        Ok(CpuTime { process, programs, runs })
    }

    /// Where its pins are, if it has any.
    #[must_use]
    pub fn pins(&self) -> &Path {
        &self.pins
    }

    /// Checks its frame log with the program's own verb, the bytes of all records with `sums`; `None` when it has no pins.
    ///
    /// # Errors
    /// Something is wrong with the log, or it cannot be read.
    pub fn verify_log(&self, sums: bool) -> Result<Option<Report>> {
        if !self.pins.join("INDEX").exists() {
            return Ok(None);
        }
        let mut command = Command::new(&self.binary);
        command.args(["verify-log", "-json"]).args(sums.then_some("-sums")).arg(&self.pins);
        let output = command.stdin(Stdio::null()).output().context("start verify-log")?;
        let stdout = String::from_utf8_lossy(&output.stdout);
        let report = serde_json::from_str(&stdout).ok().and_then(|mut line: serde_json::Value| {
            let report = line.get_mut("report")?.take();
            serde_json::from_value::<Report>(report).ok()
        });
        match report {
            Some(report) if output.status.success() && report.is_clean() => Ok(Some(report)),
            Some(report) => bail!("the frame log in {} is damaged: {report}", self.pins.display()),
            // It was about to end, and took its pins along.
            None if !self.pins.join("INDEX").exists() => Ok(None),
            None => bail!("verify-log: {}: {stdout}{}", output.status, String::from_utf8_lossy(&output.stderr)),
        }
    }

    /// As [`Daemon::verify_log`], if it runs and has been ready or is.
    fn verify_at_the_end(&mut self) -> Result<()> {
        let runs = self.child.try_wait()?.is_none();
        if runs && (self.was_ready || matches!(self.get("/readyz"), Ok((200, _)))) {
            self.verify_log(self.is_small)?;
        }
        Ok(())
    }

    /// Asks it to end (SIGTERM) and returns its exit status; SIGKILL after three seconds. All that it said is in the log then.
    ///
    /// # Errors
    /// Its frame log was damaged, or the kernel refuses the wait.
    pub fn end(&mut self) -> Result<std::process::ExitStatus> {
        let verified = self.verify_at_the_end();
        let status = self.child.end(Duration::from_secs(3))?;
        self.read_to_the_end();
        verified.with_context(|| format!("the daemon's log:\n{}", self.log()))?;
        Ok(status)
    }

    /// Lets what it leaves in the kernel stay when this is dropped: for the next daemon.
    pub const fn leave(&mut self) {
        self.is_left = true;
    }

    /// Runs a subcommand of its binary in its namespace, with its `-bpffs`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn run(&self, subcommand: &str, arguments: &[&str]) -> Result<std::process::Output> {
        let mut command = Command::new(&self.binary);
        command.arg(subcommand).args(arguments).arg("-bpffs").arg(&self.bpffs).arg(&self.interface);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        self.ns.spawn(command)?.output()
    }

    /// Waits until it has ended by itself; what it said is in the log then.
    ///
    /// # Errors
    /// It has not within ten seconds.
    pub fn wait(&mut self) -> Result<std::process::ExitStatus> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(status) = self.child.try_wait()? {
                self.read_to_the_end();
                return Ok(status);
            }
            ensure!(Instant::now() < deadline, "the daemon does not end\n{}", self.log());
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Once it has ended: until its last lines are out of the pipes.
    fn read_to_the_end(&mut self) {
        for reader in self.readers.drain(..) {
            // One that panicked has read what it has read.
            let _ = reader.join();
        }
    }
}

#[expect(clippy::panic, reason = "a damaged log is a failure of the test that ends here")]
impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("the daemon's log:\n{}", self.log());
        }
        let verified = if thread::panicking() { Ok(()) } else { self.verify_at_the_end() };
        if !self.is_left {
            // Else frames, counters and program would stay in the kernel until the next daemon of any test.
            self.child.kill();
            if let Err(error) = self.run("detach", &[]) {
                eprintln!("what the daemon left stays: {error:#}");
            }
        }
        if let Err(error) = verified {
            panic!("{error:#}\nthe daemon's log:\n{}", self.log());
        }
    }
}

/// Makes the kernel count the run time of BPF programs as long as the returned value lives (about 20 ns a run).
///
/// # Errors
/// Not root.
pub fn count_program_time() -> Result<std::os::fd::OwnedFd> {
    Ok(aya::sys::enable_stats(aya::sys::Stats::RunTime)?)
}

/// Whether this process is in a user namespace, where the kernel refuses BPF programs and their file system.
///
/// # Errors
/// No procfs.
pub fn in_user_namespace() -> Result<bool> {
    let map = std::fs::read_to_string("/proc/self/uid_map").context("read /proc/self/uid_map")?;
    // The whole range, as it is outside.
    Ok(!map.split_whitespace().eq(["0", "0", "4294967295"]))
}

/// Mounts bpffs at [`BPFFS`] unless it is there, or cannot be because this is a user namespace. Returns whether this call
/// mounted it.
///
/// # Errors
/// Not root, or no such file system in the kernel.
pub fn mount_bpffs() -> Result<bool> {
    let mounted = || statfs::statfs(BPFFS).is_ok_and(|found| found.filesystem_type() == statfs::BPF_FS_MAGIC);
    if mounted() || in_user_namespace()? {
        return Ok(false);
    }
    let none: Option<&str> = None;
    nix::mount::mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), none)
        .with_context(|| format!("mount bpffs at {BPFFS}"))?;
    Ok(true)
}

/// Time on a processor of every live thread of a process.
fn process_time(pid: u32) -> Result<Duration> {
    let mut total = Duration::ZERO;
    for entry in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end while the directory is read.
        let text = std::fs::read_to_string(entry?.path().join("schedstat")).unwrap_or_default();
        let first = text.split_whitespace().next();
        let nanoseconds = first.and_then(|word| word.parse().ok()).unwrap_or(0);
        total += Duration::from_nanos(nanoseconds);
    }
    Ok(total)
}

/// Run time and runs of every BPF program that a process holds open.
fn program_time(pid: u32) -> Result<(Duration, u64)> {
    let mut programs = std::collections::BTreeMap::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        // A descriptor may be closed while the directory is read.
        let Ok(text) = std::fs::read_to_string(entry?.path()) else {
            continue;
        };
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().parse::<u64>().ok()
        };
        if let (Some(id), Some(time), Some(runs)) = (field("prog_id:"), field("run_time_ns:"), field("run_cnt:")) {
            programs.insert(id, (time, runs));
        }
    }
    let time = programs.values().map(|(time, _)| time).sum();
    let runs = programs.values().map(|(_, runs)| runs).sum();
    Ok((Duration::from_nanos(time), runs))
}

fn keep(pipe: impl Read + Send + 'static, logs: Vec<Lines>) -> JoinHandle<()> {
    thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            for log in &logs {
                let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
                if log.len() == LOG_LINES {
                    log.remove(LOG_LINES / 2);
                }
                log.push(line.clone());
            }
        }
    })
}

/// The daemon counts windows of an hour from full hours of the monotonic clock, and right after one admits one more: a test of such
/// a window begins at least half a minute before.
fn pass_the_full_hour() -> Result<()> {
    let hour = Duration::from_secs(3600);
    let clock = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)?;
    let left = hour.as_secs() - Duration::from(clock).as_secs() % hour.as_secs();
    if left <= 30 {
        thread::sleep(Duration::from_secs(left));
    }
    Ok(())
}
