//! `retry-endpoint watch`: NACKs and what was decided on them, live, from the kernel program and from the daemon.
//!
//! The verb renews a lease in the daemon's pinned settings; while it lasts, the kernel program writes records into a ring
//! ([`crate::datapath::watch`]). The daemon tells of its own decisions over a socket ([`crate::feed`]). `join` makes one event of
//! the records of a NACK, `wanted` is what the operator asked for, `show` and `pcap` write.

mod join;
mod pcap;
mod show;
mod wanted;

use std::ffi::OsString;
use std::io::{self, Read as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use nix::net::if_::if_indextoname;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use retry_common::abi::{WATCHED_LEN, Watched, watch_flag};
use socket2::Socket;

use crate::clock::{monotonic_ns, nanoseconds};
use crate::command_line::{self, UNREADABLE};
use crate::datapath::pinned::{self, PinnedError};
use crate::datapath::watch::PinnedWatch;
use crate::feed;
use join::{Event, Join, Joined};
use show::Names;
use wanted::Wanted;

/// How long the kernel program writes records after the verb last asked for them.
const LEASE: Duration = Duration::from_secs(1);
/// Between two renewals.
const RENEWAL: Duration = Duration::from_millis(200);
/// Records taken between two renewals at most, so that a flood does not end the lease.
const ROUND: usize = 4_096;

/// Why nothing can be watched.
#[derive(Debug, thiserror::Error)]
enum WatchError {
    /// The pins.
    #[error(transparent)]
    Pinned(#[from] PinnedError),
    /// There is no daemon.
    #[error(
        "no daemon runs in this network namespace, with pins below {0} or without: run this where it runs (nsenter --net=…)"
    )]
    NoDaemon(String),
    /// There are several.
    #[error("daemons run on {0}: name one")]
    Several(String),
    /// Another watcher.
    #[error("another `retry-endpoint watch` watches {0}: end it first, a ring has one reader")]
    Watched(String),
    /// The file of `--pcap`.
    #[error("--pcap {path}: {source}")]
    Pcap {
        /// The file.
        path: String,
        /// The system's words.
        source: io::Error,
    },
    /// Standard output.
    #[error("cannot write: {0}")]
    Output(io::Error),
}

/// Runs the subcommand; `args` begins behind the word `watch`. Exit code 0 when it ended as it was asked to, 2 when a daemon or the
/// command line cannot be read.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let matches = match command_line::matches(command(), args) {
        Ok(matches) => matches,
        Err(code) => return code,
    };
    match watch(&matches) {
        Ok(()) => ExitCode::SUCCESS,
        // No process reads any more: `head` has seen enough.
        Err(WatchError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "retry-endpoint watch: {error}");
            ExitCode::from(UNREADABLE)
        }
    }
}

/// The command line.
pub(crate) fn command() -> Command {
    let number = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name("N").value_parser(value_parser!(u32).range(1..)).help(help)
    };
    Command::new("retry-endpoint watch")
        .about(
            "Shows NACKs and what was decided on them, live, by the kernel program and by the daemon. The daemon needs no \
             restart; while no process watches, nothing is written.",
        )
        .after_help("Exit code 0: it ended as asked; 2: a daemon or the command line cannot be read.")
        .arg(Arg::new("INTERFACE").help("The daemon's -mc-iface. Without it: the only one of this network namespace."))
        .arg(command_line::bpffs())
        .args(wanted::arguments())
        .arg(number("sample", "Watch one NACK in N, by a hash of its time."))
        .arg(number("count", "End after N events."))
        .arg(number("seconds", "End after N seconds."))
        .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help("One JSON object per event, one line each."))
        .arg(
            Arg::new("pcap").long("pcap").value_name("FILE").value_parser(value_parser!(PathBuf)).help(
                "Write the NACKs as they came and the answers as they left to a pcap file.",
            ),
        )
}

/// Where records come from.
struct Sources {
    /// Of the pins; `None` where the daemon has none.
    directory: Option<PathBuf>,
    kernel: Option<PinnedWatch>,
    /// Of the daemon.
    interface: String,
    daemon: Option<Socket>,
    one_in: u32,
    flags: u32,
}

fn watch(matches: &ArgMatches) -> Result<(), WatchError> {
    let number = |name: &str| matches.get_one::<u32>(name).copied();
    let wanted = Wanted::from(matches);
    let mut pcap = matches.get_one::<PathBuf>("pcap").map(|path| pcap::Writer::create(path)).transpose()?;
    let flags = if pcap.is_some() { watch_flag::PACKETS } else { 0 };
    let (interface, directory) = daemon(matches)?;
    // Held to the end.
    let _only = alone(&interface)?;
    let mut sources =
        Sources { directory, kernel: None, interface, daemon: None, one_in: number("sample").unwrap_or(1), flags };
    sources.renew()?;
    let mut join = Join::new(monotonic_ns());
    let ends = number("seconds").map(|seconds| Instant::now() + Duration::from_secs(seconds.into()));
    let mut left = number("count").unwrap_or(u32::MAX);
    let mut renewed = Instant::now();
    let out = &mut io::stdout().lock();
    let mut after = None;
    loop {
        // Clones leave after the verdict: the last event's packets are waited for.
        if left == 0 && after.is_none() {
            after = Some(Instant::now() + if pcap.is_some() { RENEWAL } else { Duration::ZERO });
        }
        if after.or(ends).is_some_and(|ends| Instant::now() >= ends) {
            return Ok(());
        }
        if renewed.elapsed() >= RENEWAL {
            sources.renew()?;
            renewed = Instant::now();
        }
        sources.wait();
        for (record, packet) in sources.take() {
            match join.take(&record, &packet) {
                Joined::Nothing => {}
                Joined::Left(packet) => {
                    if let Some(pcap) = &mut pcap {
                        pcap.write(&packet)?;
                    }
                }
                Joined::Event(event) if left > 0 && wanted.has(&event) => {
                    left -= 1;
                    join.shown(&event);
                    if let Some(pcap) = &mut pcap {
                        event.packets.iter().try_for_each(|packet| pcap.write(packet))?;
                    }
                    let names = sources.names(&event);
                    let line =
                        if matches.get_flag("json") { show::json(&event, &names) } else { show::text(&event, &names) };
                    writeln!(out, "{line}").map_err(WatchError::Output)?;
                }
                Joined::Event(_) => {}
            }
        }
        out.flush().map_err(WatchError::Output)?;
    }
}

/// Interface and directory of pins of the daemon that the command line means.
fn daemon(matches: &ArgMatches) -> Result<(String, Option<PathBuf>), WatchError> {
    let root = matches.get_one::<PathBuf>("bpffs").cloned().unwrap_or_default();
    let pinned = |interface: &str| -> Result<Option<PathBuf>, WatchError> {
        let directory = pinned::pin_directory(&root, interface)?;
        Ok(directory.exists().then_some(directory))
    };
    if let Some(interface) = matches.get_one::<String>("INTERFACE") {
        return Ok((interface.clone(), pinned(interface)?));
    }
    let mut all = feed::interfaces().unwrap_or_default();
    all.extend(pinned::pin_directories(&root)?.iter().filter_map(|directory| pinned::interface_of(directory)));
    all.sort_unstable();
    all.dedup();
    match all.as_slice() {
        [] => Err(WatchError::NoDaemon(root.display().to_string())),
        [interface] => Ok((interface.clone(), pinned(interface)?)),
        several => Err(WatchError::Several(several.join(", "))),
    }
}

/// Makes sure that no other process watches: a ring has one reader.
fn alone(interface: &str) -> Result<Socket, WatchError> {
    feed::watcher(interface).map_err(|_| WatchError::Watched(interface.to_owned()))
}

impl Sources {
    /// Asks for records, of whatever daemon is there by now.
    ///
    /// # Errors
    /// There is none, and there was none before.
    fn renew(&mut self) -> Result<(), WatchError> {
        if let Some(directory) = &self.directory {
            if self.kernel.as_ref().is_some_and(|kernel| !kernel.is_current()) {
                self.kernel = None;
            }
            match PinnedWatch::open(directory) {
                Ok(opened) if self.kernel.is_none() => self.kernel = Some(opened),
                Ok(_) => {}
                // One that starts at this moment has its pins soon.
                Err(error) if self.daemon.is_none() && self.kernel.is_none() => return Err(error.into()),
                Err(_) => {}
            }
        }
        if let Some(kernel) = &self.kernel {
            kernel.renew(monotonic_ns().saturating_add(nanoseconds(LEASE)), self.one_in, self.flags);
        }
        if self.daemon.is_none() {
            self.daemon = feed::connect(&self.interface, self.flags).ok();
        }
        if self.kernel.is_none() && self.daemon.is_none() && self.directory.is_none() {
            return Err(WatchError::NoDaemon(self.interface.clone()));
        }
        Ok(())
    }

    /// Waits for a record, or until the lease is to be renewed.
    fn wait(&self) {
        let kernel = self.kernel.iter().map(PinnedWatch::fd);
        let daemon = self.daemon.iter().map(std::os::fd::AsFd::as_fd);
        let mut waits: Vec<PollFd<'_>> = kernel.chain(daemon).map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        let patience = PollTimeout::try_from(RENEWAL / 2).unwrap_or(PollTimeout::ZERO);
        // EINTR is a reason to look as well.
        let _ = poll(&mut waits, patience);
    }

    /// What has come.
    fn take(&mut self) -> Vec<(Watched, Vec<u8>)> {
        let mut taken = Vec::new();
        if let Some(kernel) = &mut self.kernel {
            taken.extend(std::iter::from_fn(|| kernel.take()).take(ROUND));
        }
        let mut bytes = vec![0; WATCHED_LEN + usize::from(u16::MAX)];
        while let Some(daemon) = self.daemon.as_mut().filter(|_| taken.len() < 2 * ROUND) {
            match daemon.read(&mut bytes) {
                Ok(0) => self.daemon = None,
                Ok(length) => {
                    let parsed = bytes.get(..length).and_then(Watched::parse);
                    taken.extend(parsed.map(|(record, packet)| (record, packet.to_vec())));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => self.daemon = None,
            }
        }
        taken
    }

    /// The interfaces of an event, by their names.
    fn names(&self, event: &Event) -> Names {
        let name = |index: u32| {
            if_indextoname(index).map_or_else(|_| index.to_string(), |name| name.to_string_lossy().into_owned())
        };
        let kernel = self.kernel.as_ref();
        Names {
            came: (event.ifindex != 0).then(|| name(event.ifindex)),
            nack: kernel.map(|kernel| name(kernel.nack_interface())),
            egress: kernel.map(|kernel| kernel.egress().into_iter().map(name).collect()).unwrap_or_default(),
        }
    }
}
