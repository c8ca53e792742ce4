//! Starts of the real binary with an environment, in several namespaces at a time.

use std::{
    io::Read as _,
    net::SocketAddr,
    path::Path,
    process::{Command, Stdio},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use retry_testbed::{
    daemon::http,
    net::netns::{ChildGuard, Netns},
    scene::binary,
};

use super::rendered;

/// Starts at a time.
const AT_ONCE: usize = 4;
/// How long one may take; a busy machine needs it.
const PATIENCE: Duration = Duration::from_secs(30);
/// The user of the chart's pod.
const UID: &str = "65532";

/// One start: the chart's defaults with some variables changed, and what has to come of it.
pub(crate) struct Case {
    label: String,
    variables: Vec<(String, String)>,
    /// Parts of the one line of the refusal; none: it is ready.
    refusal: Vec<String>,
    has_rights: bool,
    is_quick: bool,
}

impl Case {
    /// The defaults.
    pub(crate) fn new(label: &str) -> Self {
        Self { label: label.to_owned(), variables: Vec::new(), refusal: Vec::new(), has_rights: true, is_quick: true }
    }

    /// The defaults but for one variable.
    pub(crate) fn of(name: &str, value: &str) -> Self {
        Self::new("").with(name, value)
    }

    /// And this variable; empty is not set.
    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// It does not start, and says so in one line that holds this.
    pub(crate) fn refused(mut self, part: &str) -> Self {
        self.refusal.push(part.to_owned());
        self
    }

    /// As the pod's user, without capabilities.
    pub(crate) fn without_rights(mut self) -> Self {
        self.has_rights = false;
        self
    }

    /// With XDP and rings as they are by default.
    pub(crate) fn in_default_mode(mut self) -> Self {
        self.is_quick = false;
        self
    }

    fn name(&self) -> String {
        let variables = self.variables.iter().map(|(name, value)| format!("{name}={value}"));
        format!("{} {}", self.label, variables.collect::<Vec<_>>().join(" ")).trim().to_owned()
    }

    fn run(&self, binary: &Path, ns: &Netns) -> Result<()> {
        let mut command = if self.has_rights {
            Command::new(binary)
        } else {
            let mut command = Command::new("setpriv");
            command.args(["--reuid", UID, "--regid", UID, "--clear-groups", "--bounding-set", "-all"]).arg(binary);
            command
        };
        command.env_clear().envs(rendered());
        if self.is_quick {
            command.envs([("CACHE_MEMORY", "16m"), ("CACHE_MEMORY_LONG", "16m"), ("XDP", "off")]);
        }
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = ns.spawn(command)?;
        let ready = await_ready(ns, &mut child)?;
        if ready {
            let status = child.end(PATIENCE)?;
            ensure!(self.refusal.is_empty(), "it is ready and not refused: {:?}", self.refusal);
            ensure!(status.success(), "at SIGTERM: {status}\n{}", said(&mut child)?);
            return Ok(());
        }
        let (status, said) = (child.end(PATIENCE)?, said(&mut child)?);
        ensure!(!self.refusal.is_empty(), "it is not ready: {status}\n{said}");
        ensure!(status.code() == Some(1), "exit code of a refusal: {status}\n{said}");
        let [line] = said.lines().collect::<Vec<_>>()[..] else { bail!("a refusal is one line:\n{said}") };
        ensure!(self.refusal.iter().all(|part| line.contains(part)), "{:?} are not all in: {line}", self.refusal);
        Ok(())
    }
}

/// A namespace with the interface and the address of the chart's pod.
pub(crate) fn pod() -> Result<Netns> {
    let ns = Netns::new("chart")?;
    ns.run(&["ip", "link", "add", "eth0", "type", "veth", "peer", "name", "peer0"])?;
    for end in ["eth0", "peer0"] {
        ns.run(&["ip", "link", "set", end, "up"])?;
    }
    ns.run(&["ip", "address", "add", "fd10::20/64", "dev", "eth0", "nodad"])?;
    Ok(ns)
}

/// True once `/readyz` says 200, false when the program has ended before.
fn await_ready(ns: &Netns, child: &mut ChildGuard) -> Result<bool> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if child.try_wait()?.is_some() {
            return Ok(false);
        }
        for address in ["[::1]:9400", "127.0.0.1:9400"] {
            let address: SocketAddr = address.parse()?;
            if matches!(http::get(ns, address, "/readyz"), Ok((200, _))) {
                return Ok(true);
            }
        }
        ensure!(Instant::now() < deadline, "neither ready nor ended within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// What it wrote to stderr, once it has ended.
fn said(child: &mut ChildGuard) -> Result<String> {
    let mut text = String::new();
    child.child_mut().stderr.take().context("a pipe")?.read_to_string(&mut text)?;
    Ok(text)
}

/// Runs every case and fails with those that did not come out as they should.
pub(crate) fn run_all(cases: Vec<Case>) {
    let binary = binary();
    let waiting = Mutex::new(cases.into_iter());
    let failures = Mutex::new(Vec::new());
    let take = || waiting.lock().expect("no panic").next();
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                // A start leaves nothing behind: those that follow each other share a namespace.
                let ns = pod().expect("a namespace");
                while let Some(case) = take() {
                    if let Err(error) = case.run(&binary, &ns) {
                        failures.lock().expect("no panic").push(format!("{}: {error:#}", case.name()));
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().expect("no panic");
    assert!(failures.is_empty(), "{} starts came out wrong:\n{}", failures.len(), failures.join("\n"));
}
