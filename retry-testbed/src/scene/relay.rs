//! Daemons that follow one another on one host: each is ended or killed, and the next one takes over.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;

use crate::{
    daemon::{Daemon, Metrics},
    net::fabric::Host,
};

/// How long the first daemon may take: it has the memory of its log cleared.
const FIRST: Duration = Duration::from_secs(60);

/// How a daemon ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum End {
    /// By SIGTERM.
    Told,
    /// By SIGKILL, wherever it stands.
    Killed,
}

/// The daemon that serves now, and what those before it have counted.
#[derive(Debug)]
pub struct Relay<'a> {
    binary: PathBuf,
    host: &'a Host,
    daemon: Daemon<'a>,
    takeovers: u64,
}

impl<'a> Relay<'a> {
    /// Starts the first daemon.
    ///
    /// # Errors
    /// It is not ready in time, or it found what an earlier one left.
    pub fn start(binary: &Path, host: &'a Host, flags: &[&str]) -> Result<Self> {
        let mut daemon = Daemon::start_within(FIRST, binary, &host.ns, flags)?;
        daemon.leave();
        let mode = daemon.metrics()?.state("bre_start_mode", "mode");
        ensure!(mode.as_deref() == Some("fresh"), "the first daemon starts {mode:?}\n{}", daemon.log());
        Ok(Self { binary: binary.to_owned(), host, daemon, takeovers: 0 })
    }

    /// The daemon that serves.
    pub const fn daemon(&mut self) -> &mut Daemon<'a> {
        &mut self.daemon
    }

    /// Ends the daemon and starts the next one. Its counters go on from those of the one before, and it has its frames.
    ///
    /// # Errors
    /// It is otherwise.
    pub fn hand_over(&mut self, end: End, flags: &[&str]) -> Result<Metrics> {
        self.hand_over_timed(end, flags).map(|(metrics, _)| metrics)
    }

    /// As [`Relay::hand_over`]; tells how long the next one took from its start until it was ready, too.
    ///
    /// # Errors
    /// As [`Relay::hand_over`].
    pub fn hand_over_timed(&mut self, end: End, flags: &[&str]) -> Result<(Metrics, Duration)> {
        let before = self.daemon.metrics()?;
        self.daemon.child().signal(if end == End::Told { Signal::SIGTERM } else { Signal::SIGKILL })?;
        let status = self.daemon.wait()?;
        ensure!(status.success() == (end == End::Told), "{end:?}: {status}\n{}", self.daemon.log());
        let began = Instant::now();
        let mut next = Daemon::start(&self.binary, &self.host.ns, flags)?;
        let took = began.elapsed();
        next.leave();
        self.daemon = next;
        self.takeovers += 1;
        let after = self.daemon.metrics()?;
        let mode = after.state("bre_start_mode", "mode");
        ensure!(mode.as_deref() == Some("adopted"), "it starts {mode:?}\n{}", self.daemon.log());
        let counted = after.count("bre_handovers_total", &[("result", "adopted")]);
        ensure!(counted == self.takeovers, "{counted} of {} takeovers are counted", self.takeovers);
        for (series, value) in before.iter().filter(|(series, _)| is_counter(series)) {
            let now = after.get(series);
            ensure!(now.is_some_and(|now| now >= value), "{series} fell from {value} to {now:?} ({end:?})");
        }
        Ok((after, took))
    }

    /// Ends the last daemon and what it left.
    ///
    /// # Errors
    /// Something stays.
    pub fn end(mut self) -> Result<()> {
        self.daemon.end()?;
        let output = self.daemon.run("detach", &[])?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        ensure!(!self.daemon.pins().exists(), "{} is left", self.daemon.pins().display());
        Ok(())
    }
}

/// True for a series of a counter that is not the process's own.
fn is_counter(series: &str) -> bool {
    series.split('{').next().is_some_and(|name| name.starts_with("bre_") && name.ends_with("_total"))
}
