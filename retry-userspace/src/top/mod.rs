//! `retry-endpoint top`: how a daemon does, live, in a terminal. It reads `/v1/status` of the daemon's metrics address, which has
//! what the status page shows, and changes nothing.

mod screen;
mod status;
#[cfg(test)]
mod tests;
mod view;

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::{Map, Value};

use crate::command_line::{self, UNREADABLE};
use screen::{Screen, Wish};
use status::{Counted, Status};
use view::Look;

/// A daemon that takes longer does not answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// More bytes than any status has.
const LONGEST: u64 = 4 << 20;

/// Why nothing is shown.
#[derive(Debug, thiserror::Error)]
enum TopError {
    /// The daemon.
    #[error("{url}: {why}; name the daemon's -metrics-addr, and run this where it runs (nsenter --net=…)")]
    Daemon {
        /// What was asked.
        url: String,
        /// What came.
        why: String,
    },
    /// The terminal.
    #[error("the terminal cannot be used: {0}; --once writes plain text")]
    Terminal(io::Error),
    /// Standard output.
    #[error("cannot write: {0}")]
    Output(io::Error),
}

/// Runs the subcommand; `args` begins behind the word `top`. Exit code 0 when it ended as it was asked to, 2 when the daemon, the
/// terminal or the command line cannot be read.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let matches = match command_line::matches(command(), args) {
        Ok(matches) => matches,
        Err(code) => return code,
    };
    match top(&matches) {
        Ok(()) => ExitCode::SUCCESS,
        // No process reads any more: `head` has seen enough.
        Err(TopError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "retry-endpoint top: {error}");
            ExitCode::from(UNREADABLE)
        }
    }
}

/// The command line.
pub(crate) fn command() -> Command {
    let interval = |text: &str| match text.parse::<f64>() {
        Ok(seconds) if (0.1..=3600.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("0.1 to 3600 is accepted".to_owned()),
    };
    Command::new("retry-endpoint top")
        .about(
            "Shows how a daemon does, live: state, interfaces, NACKs and answers per second, how long they take, the sources \
             and flows that ask most, the oldest frames, upstream endpoints and Redis. q ends it, the arrow keys scroll.",
        )
        .after_help("Exit code 0: it ended as asked; 2: the daemon, the terminal or the command line cannot be read.")
        .arg(
            Arg::new("ADDRESS")
                .default_value("[::1]:9400")
                .help("The daemon's -metrics-addr: HOST:PORT, an IPv6 address in brackets."),
        )
        .arg(
            Arg::new("interval")
                .long("interval")
                .value_name("SECONDS")
                .default_value("2")
                .value_parser(interval)
                .help("Between two looks."),
        )
        .arg(
            Arg::new("once")
                .long("once")
                .action(ArgAction::SetTrue)
                .help("Two looks, one interval apart, for what happens per second: then plain text, and the end."),
        )
        .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help(
            "One JSON object per look, one line each: /v1/status, with per_second for its nacks and answers. The first look has \
             no rates and is not written.",
        ))
}

/// Where looks come from.
struct Daemon {
    agent: ureq::Agent,
    url: String,
}

impl Daemon {
    fn new(address: &str) -> Self {
        let config = ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).proxy(None).build();
        Self { agent: config.into(), url: format!("http://{address}/v1/status") }
    }

    fn error(&self, why: impl ToString) -> TopError {
        TopError::Daemon { url: self.url.clone(), why: why.to_string() }
    }

    /// What the daemon says, whole.
    fn ask(&self) -> Result<Value, TopError> {
        let mut answer = self.agent.get(&self.url).call().map_err(|error| self.error(error))?;
        let body = answer.body_mut().with_config().limit(LONGEST).read_to_string();
        let body = body.map_err(|error| self.error(error))?;
        serde_json::from_str(&body).map_err(|error| self.error(error))
    }

    fn look(&self) -> Result<(Value, Status), TopError> {
        let whole = self.ask()?;
        let status = serde_json::from_value(whole.clone()).map_err(|error| self.error(error))?;
        Ok((whole, status))
    }
}

fn top(matches: &ArgMatches) -> Result<(), TopError> {
    let address = matches.get_one::<String>("ADDRESS").map_or("[::1]:9400", String::as_str);
    let interval = matches.get_one::<Duration>("interval").copied().unwrap_or(PATIENCE);
    let daemon = Daemon::new(address);
    let is_once = matches.get_flag("once");
    // Before the terminal is taken: an address that is wrong is told on the screen that the operator has.
    let (_, first) = daemon.look()?;
    if matches.get_flag("json") || is_once {
        write(&daemon, first, interval, is_once, matches.get_flag("json"))
    } else {
        live(&daemon, first, interval)
    }
}

/// Writes looks as text or JSON, the next one or all that come.
fn write(daemon: &Daemon, first: Status, interval: Duration, is_once: bool, is_json: bool) -> Result<(), TopError> {
    let (mut before, mut at) = (first, Instant::now());
    loop {
        std::thread::sleep(interval);
        let (whole, now) = daemon.look()?;
        let look = Look { now: &now, before: Some((&before, at.elapsed())) };
        at = Instant::now();
        let text = if is_json { json(whole, &look) } else { view::text(&view::lines(&look)) };
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(TopError::Output)?;
        if is_once {
            return Ok(());
        }
        before = now;
    }
}

/// The status with what happened per second, in one line.
fn json(whole: Value, look: &Look<'_>) -> String {
    let rates = |all: &[Counted], of: fn(&Status) -> &[Counted]| -> Value {
        let rates =
            all.iter().filter_map(|one| Some((one.name.clone(), view::per_second(of, &one.name, look)?.into())));
        Value::Object(rates.collect())
    };
    let mut per_second = Map::new();
    per_second.insert("nacks".to_owned(), rates(&look.now.nacks, |status| &status.nacks));
    per_second.insert("answers".to_owned(), rates(&look.now.answers, |status| &status.answers));
    let mut whole = whole;
    if let Value::Object(fields) = &mut whole {
        fields.insert("per_second".to_owned(), Value::Object(per_second));
    }
    format!("{whole}\n")
}

/// Shows looks in the terminal until the operator or a signal ends it. A daemon that does not answer is waited for.
fn live(daemon: &Daemon, first: Status, interval: Duration) -> Result<(), TopError> {
    let mut screen = Screen::take().map_err(TopError::Terminal)?;
    let (mut now, mut at) = (first, Instant::now());
    let mut before: Option<(Status, Duration)> = None;
    let mut fault: Option<String> = None;
    loop {
        let look = Look { now: &now, before: before.as_ref().map(|(status, passed)| (status, *passed)) };
        let lines = view::lines(&look);
        let foot = match &fault {
            None => format!("{}, every {interval:?}: q ends, arrow keys scroll", daemon.url),
            Some(why) => format!("{}: what stands here is old; {why}", daemon.url),
        };
        if screen.show(&lines, &foot, Instant::now() + interval).map_err(TopError::Terminal)? == Wish::End {
            return Ok(());
        }
        match daemon.look() {
            Ok((_, next)) => {
                before = Some((std::mem::replace(&mut now, next), at.elapsed()));
                at = Instant::now();
                fault = None;
            }
            Err(error) => fault = Some(error.to_string()),
        }
    }
}
