//! `retry-endpoint check`: looks at the host and at the settings of a daemon, and says what would keep it from its work. It
//! attaches nothing, joins nothing and pins nothing.
//!
//! What the daemon judges at its start is judged here by the same functions: settings, interfaces, memory, pins, programs.

mod device;
mod finding;
mod host;
mod links;
mod peers;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use crate::settings::{Settings, Stop, parse_duration};
use finding::{Finding, Findings};

const HELP: &str = "\
Looks at the host and at the settings of a daemon, and says what would keep it from its work. Attaches nothing.

Usage: retry-endpoint check [-json] [-listen TIME] [settings of the daemon]...

Settings come from the same flags, variables and files as those of the daemon (retry-endpoint -help).

  -json          One JSON object.
  -listen TIME   Listens so long for MLD queries on the fabric interface; queriers ask every 125s unless set otherwise.

Exit code 0: nothing to do; 1: the daemon works, and a line is yellow; 2: a line is red, or the command line cannot be read.";

/// The exit code of a command line that cannot be read, or of a red line.
const RED: u8 = 2;

/// What the command line asks for beside the daemon's settings.
#[derive(Debug, Default, PartialEq)]
struct Options {
    is_json: bool,
    is_help: bool,
    listen: Option<Duration>,
    /// The daemon's settings.
    rest: Vec<OsString>,
}

/// Runs the subcommand; `args` begins behind the word `check`. Exit code 0 for nothing worse than green, 1 for yellow, 2 for
/// red, and for a command line that cannot be read.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let (mut out, mut err) = (std::io::stdout(), std::io::stderr());
    let options = match options(args) {
        Ok(options) => options,
        Err(why) => {
            let _ = writeln!(err, "retry-endpoint check: {why}");
            return ExitCode::from(RED);
        }
    };
    if options.is_help {
        let _ = writeln!(out, "{HELP}");
        return ExitCode::SUCCESS;
    }
    let program = std::iter::once(OsString::from("retry-endpoint"));
    let settings = Settings::from_args_and_env(program.chain(options.rest), |name| std::env::var_os(name));
    let findings = match settings {
        Ok(settings) => look(&settings, options.listen),
        Err(Stop::Asked(text)) => {
            let _ = writeln!(out, "{text}");
            return ExitCode::SUCCESS;
        }
        // Without settings there is nothing to hold the host against.
        Err(refused) => Ok(Findings(vec![Finding::red("settings", refused.to_string(), "correct this setting")])),
    };
    match findings {
        Ok(findings) => {
            // When no process reads any more, the exit code still tells.
            let _ = if options.is_json { writeln!(out, "{}", findings.json()) } else { write!(out, "{findings}") };
            ExitCode::from(findings.code())
        }
        Err(error) => {
            let _ = writeln!(err, "retry-endpoint check: {error}");
            ExitCode::from(RED)
        }
    }
}

fn options(args: impl Iterator<Item = OsString>) -> Result<Options, String> {
    let mut options = Options::default();
    let mut args = args;
    while let Some(arg) = args.next() {
        let text = arg.to_str().unwrap_or_default();
        let body = text.strip_prefix("--").or_else(|| text.strip_prefix('-')).unwrap_or_default();
        match body.split_once('=').unwrap_or((body, "")) {
            ("json", "") => options.is_json = true,
            ("help" | "h", "") => options.is_help = true,
            ("listen", value) => {
                let value = if body.contains('=') {
                    value.to_owned()
                } else {
                    args.next().and_then(|value| value.into_string().ok()).unwrap_or_default()
                };
                let time = parse_duration(&value).map_err(|why| format!("-listen {value:?}: {why}"))?;
                options.listen = Some(time);
            }
            _ => options.rest.push(arg),
        }
    }
    Ok(options)
}

/// Everything that can be told, in the order in which an operator sets a host up.
///
/// # Errors
/// No runtime, or the kernel does not list its links.
fn look(settings: &Settings, listen: Option<Duration>) -> Result<Findings, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start: {error}"))?;
    let set = settings.describe().iter().filter(|one| one.set_by != crate::settings::SetBy::Default).count();
    let mut findings = vec![Finding::green("settings", format!("they can stand, {set} of them set"))];
    findings.extend(host::look(settings));
    let links = runtime.block_on(links::Links::look(settings)).map_err(|error| error.to_string())?;
    findings.extend(links.judge(settings, listen));
    findings.extend(runtime.block_on(peers::look(settings)));
    Ok(Findings(findings))
}
