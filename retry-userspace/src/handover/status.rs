//! `retry-endpoint status`: what is pinned, by which build, since when, and how long the leases run. It changes nothing.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::{Arg, ArgAction, Command};

use super::{UNREADABLE, command, read};
use crate::clock::{monotonic_ns, nanoseconds};
use crate::datapath::inspect::{self, PinnedState};

/// Runs the subcommand; `args` begins behind the word `status`. Exit code 0 when a daemon or a kernel program without one is
/// there, 1 when nothing is pinned, 2 when the pins or the command line cannot be read.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let (matches, root) = match read(arguments(), args) {
        Ok(read) => read,
        Err(code) => return code,
    };
    let states = inspect::states(&root).and_then(|mut states| {
        if let Some(interface) = matches.get_one::<String>("INTERFACE") {
            let wanted = root.join(inspect::directory_name(&root, interface)?);
            states.retain(|state| state.directory == wanted);
        }
        Ok(states)
    });
    let states = match states {
        Ok(states) => states,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "retry-endpoint status: {error}");
            return ExitCode::from(UNREADABLE);
        }
    };
    for state in &states {
        // When no process reads any more, the exit code still tells.
        let _ = if matches.get_flag("json") {
            writeln!(std::io::stdout(), "{}", json(state))
        } else {
            write!(std::io::stdout(), "{}", text(state))
        };
    }
    if states.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// The command line.
pub(crate) fn arguments() -> Command {
    command("retry-endpoint status")
        .about("Tells what daemons have pinned: build, start, leases, attached interfaces. Changes nothing.")
        .after_help("Exit code 0: something is pinned; 1: nothing is; 2: the pins cannot be read.")
        .arg(
            Arg::new("json").long("json").action(ArgAction::SetTrue).help("One JSON object per daemon, one line each."),
        )
}

/// What is left of a lease that ends at `until_ns` of the monotonic clock.
fn left(until_ns: u64) -> Duration {
    Duration::from_nanos(until_ns.saturating_sub(monotonic_ns()))
}

fn age(since_unix_ns: u64) -> Option<Duration> {
    let now_ns = nanoseconds(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
    (since_unix_ns != 0).then(|| Duration::from_nanos(now_ns.saturating_sub(since_unix_ns)))
}

fn json(state: &PinnedState) -> serde_json::Value {
    let known = state.settings.as_ref().and_then(|settings| settings.known.as_ref());
    let links: serde_json::Map<String, serde_json::Value> =
        state.links.iter().map(|(interface, index)| (interface.clone(), (*index).into())).collect();
    serde_json::json!({
        "pins": state.directory.display().to_string(),
        "interface": state.interface,
        "namespace": state.namespace,
        "daemon": state.is_served,
        "layout": state.settings.as_ref().map(|settings| settings.layout),
        "build": known.map(|known| known.build.clone()),
        "since_unix_seconds": known.map(|known| known.since_unix_ns / 1_000_000_000),
        "bpf_lease_left_seconds": known.map(|known| left(known.lease_until_ns).as_secs_f64()),
        "daemon_lease_left_seconds": known.map(|known| left(known.daemon_until_ns).as_secs_f64()),
        "attached": links,
        "ring_bytes": state.ring_bytes,
    })
}

fn text(state: &PinnedState) -> String {
    let mut text = String::new();
    let who = if state.is_served { "a daemon serves" } else { "no daemon: the kernel program is left to the next one" };
    let PinnedState { directory, interface, namespace, .. } = state;
    let _ = writeln!(text, "{interface} in network namespace {namespace}: {who}");
    let _ = writeln!(text, "  pins       {}", directory.display());
    match state.settings.as_ref().map(|settings| (settings.layout, &settings.known)) {
        None => {
            let _ = writeln!(text, "  settings   cannot be read");
        }
        Some((layout, None)) => {
            let _ = writeln!(text, "  layout     {layout}: of another build, whose `retry-endpoint status` tells more");
        }
        Some((layout, Some(known))) => {
            let since = age(known.since_unix_ns);
            let since = since.map_or_else(|| "starting".to_owned(), |age| format!("serving since {} s", age.as_secs()));
            let _ = writeln!(text, "  build      {}, layout {layout}, {since}", known.build);
            for (name, until_ns) in [("bpf", known.lease_until_ns), ("daemon", known.daemon_until_ns)] {
                let left = left(until_ns);
                let left = if left.is_zero() { "over".to_owned() } else { format!("{:.1} s left", left.as_secs_f64()) };
                let _ = writeln!(text, "  lease      -{name}-lease: {left}");
            }
        }
    }
    for (interface, index) in &state.links {
        let _ = match index {
            0 => writeln!(text, "  attached   {interface}: gone"),
            index => writeln!(text, "  attached   {interface} (index {index})"),
        };
    }
    let _ = writeln!(text, "  ring       {} MiB", state.ring_bytes >> 20);
    text
}
