//! Where a setting's value comes from: a flag beats the environment, the environment beats the default.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, Command};

use super::error::{SettingsError, Stop, shown};
use super::rows::{self, Flag, groups};

/// What `-version` says behind the program's name: version, commit and build date.
const VERSION: &str =
    concat!(env!("CARGO_PKG_VERSION"), " (commit ", env!("RETRY_COMMIT"), ", built ", env!("RETRY_BUILD_DATE"), ")");

/// Who set a value.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SetBy {
    /// The command line.
    Flag,
    /// The environment.
    Env,
    /// Neither flag nor variable.
    Default,
}

/// Every setting's text and who set it.
#[derive(Debug)]
pub(super) struct Values {
    settings: HashMap<&'static str, Value>,
    /// `-check-config`: the settings are all that is looked at.
    check_only: bool,
    /// `ADMIN_TOKEN`: a secret has no flag, where every user of the host could read it.
    admin_token: Option<String>,
}

#[derive(Debug)]
struct Value {
    text: String,
    set_by: SetBy,
    /// The variable that the text comes from.
    variable: Option<&'static str>,
}

/// The flag that is no setting: all are read and checked, and nothing is started.
pub(super) const CHECK_CONFIG: &str = "check-config";

impl Values {
    pub(super) fn collect<E: Into<OsString>>(
        args: impl Iterator<Item = OsString>,
        env: impl Fn(&str) -> Option<E>,
    ) -> Result<Self, Stop> {
        let args = from_go_style(args);
        if let Some(arg) = args.iter().skip(1).find(|arg| arg.to_str().is_none()) {
            let line = format!("{}: UTF-8 is accepted", shown(&arg.to_string_lossy()));
            return Err(SettingsError::Usage(line).into());
        }
        let matches = command().try_get_matches_from(args).map_err(|error| stop_of(&error))?;
        let values = rows::all().map(|flag| {
            // Empty is unset, as the field's program has it.
            let from_env = || {
                std::iter::once(flag.env).chain(flag.aliases.iter().map(|alias| alias.env)).find_map(|name| {
                    let text: OsString = env(name)?.into();
                    (!text.is_empty()).then_some((name, text))
                })
            };
            let value = if let Some(text) = matches.get_one::<String>(flag.name) {
                Value { text: text.clone(), set_by: SetBy::Flag, variable: None }
            } else if let Some((variable, text)) = from_env() {
                let text = text.into_string().map_err(|text| SettingsError::Value {
                    setting: format!("-{} (from {variable}) {}", flag.name, shown(&text.to_string_lossy())),
                    accepted: "UTF-8 is accepted".to_owned(),
                })?;
                Value { text, set_by: SetBy::Env, variable: Some(variable) }
            } else {
                Value { text: flag.default.to_owned(), set_by: SetBy::Default, variable: None }
            };
            Ok((flag.name, value))
        });
        let settings = values.collect::<Result<_, SettingsError>>()?;
        let admin_token: Option<OsString> = env("ADMIN_TOKEN").map(Into::into).filter(|text| !text.is_empty());
        let check_only = matches.get_flag(CHECK_CONFIG);
        Ok(Self { settings, check_only, admin_token: admin_token.map(|text| text.to_string_lossy().into_owned()) })
    }

    /// True with `-check-config`: the daemon does not start.
    pub(super) const fn check_only(&self) -> bool {
        self.check_only
    }

    /// The variable `ADMIN_TOKEN`, when it is set.
    pub(super) fn admin_token(&self) -> Option<&str> {
        self.admin_token.as_deref()
    }

    /// The text of a setting, `""` when it is not set.
    pub(super) fn text(&self, name: &str) -> &str {
        debug_assert!(self.settings.contains_key(name), "{name} is no setting");
        self.settings.get(name).map_or("", |value| &value.text)
    }

    /// True when the operator set it, by flag or by variable.
    pub(super) fn is_set(&self, name: &str) -> bool {
        self.set_by(name) != SetBy::Default
    }

    pub(super) fn set_by(&self, name: &str) -> SetBy {
        self.settings.get(name).map_or(SetBy::Default, |value| value.set_by)
    }

    /// The value of a setting; the error names it, its text and what is accepted.
    pub(super) fn get<T>(&self, name: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Result<T, SettingsError> {
        parse(self.text(name)).map_err(|accepted| self.refusal(name, accepted))
    }

    /// Why the value of `name` cannot stand.
    pub(super) fn refusal(&self, name: &str, accepted: impl Into<String>) -> SettingsError {
        let value = match self.text(name) {
            "" => "is not set".to_owned(),
            text => shown(text),
        };
        let setting = match self.settings.get(name).and_then(|value| value.variable) {
            Some(variable) => format!("-{name} (from {variable}) {value}"),
            None => format!("-{name} {value}"),
        };
        SettingsError::Value { setting, accepted: accepted.into() }
    }
}

/// The command line of the daemon.
pub(crate) fn command() -> Command {
    let command = Command::new("retry-endpoint")
        .version(VERSION)
        .about("Keeps the recent frames of a multicast fabric and answers NACKs for them, in the kernel where it can.")
        .override_usage("retry-endpoint [-name value | -name=value | -switch]...")
        .after_help(
            "One dash or two. A flag beats its variable, a variable beats the default; an empty variable is not set.\n\
             retry-endpoint check: looks at the host and at these settings, starts nothing; check -help tells more.\n\
             retry-endpoint nack HOST HASHKEY SEQ: asks an endpoint for a frame as a listener does; nack -help tells more.\n\
             retry-endpoint probe ADDR: measures how another endpoint answers; retry-endpoint probe -help tells more.\n\
             retry-endpoint verify-log: checks the frame log of a daemon that runs; verify-log -help tells more.\n\
             retry-endpoint status: tells what is pinned, by which build, and how long the leases run.\n\
             retry-endpoint detach: ends what a daemon that is gone has left in the kernel.",
        )
        .arg(
            Arg::new(CHECK_CONFIG)
                .long(CHECK_CONFIG)
                .action(ArgAction::SetTrue)
                .help("Reads and checks the settings, and ends: 0 when they can stand, 1 or 2 as a start would."),
        );
    groups().iter().fold(command, |command, group| {
        let args = group.flags.iter().map(|flag| arg_of(flag).help_heading(group.title));
        command.args(args)
    })
}

fn arg_of(flag: &'static Flag) -> Arg {
    let default = if flag.default.is_empty() { "not set" } else { flag.default };
    let arg = Arg::new(flag.name)
        .long(flag.name)
        .aliases(flag.aliases.iter().map(|alias| alias.flag))
        .action(ArgAction::Set)
        .overrides_with(flag.name)
        .value_name("value")
        .help(format!(
            "{} {} [accepted: {}; default: {default}; env: {}]",
            flag.meaning, flag.consequence, flag.accepted, flag.env
        ));
    if flag.is_switch { arg.num_args(0..=1).require_equals(true).default_missing_value("true") } else { arg }
}

/// `-name value`, `-name=value` and `--name value` as `--name=value`, by the rules of Go's `flag` package: a setting that
/// is no switch takes the next word whatever it looks like, a switch never does, and `--` ends the settings.
fn from_go_style(mut args: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut out: Vec<OsString> = args.next().into_iter().collect();
    while let Some(arg) = args.next() {
        let Some(body) = body_of(&arg) else {
            out.push(arg);
            if out.last().is_some_and(|last| last == "--") {
                out.extend(args.by_ref());
            }
            continue;
        };
        let mut whole = OsString::from("--");
        whole.push(body);
        if body.to_str().and_then(rows::find).is_some_and(|flag| !flag.is_switch)
            && let Some(value) = args.next()
        {
            whole.push("=");
            whole.push(value);
        }
        out.push(whole);
    }
    out
}

/// What stands behind the dashes of a flag; `None` for a word, and for `-h` and `-V`, which clap knows.
fn body_of(arg: &OsStr) -> Option<&OsStr> {
    let bytes = arg.as_bytes();
    let body = bytes.strip_prefix(b"--").or_else(|| bytes.strip_prefix(b"-").filter(|body| body.len() > 1))?;
    body.first().is_some_and(u8::is_ascii_alphanumeric).then(|| OsStr::from_bytes(body))
}

/// clap's refusal in one line, with the one dash that our documents have.
fn stop_of(error: &clap::Error) -> Stop {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        return Stop::Asked(error.to_string().trim_end().to_owned());
    }
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(texts)) => texts.first().cloned(),
        _ => None,
    };
    // clap shows `--name <value>`; a value that it refuses may stand there too, behind the equals sign.
    let arg = context(ContextKind::InvalidArg).unwrap_or_default();
    let letter = |body: &&str| body.chars().count() == 1;
    let name = arg
        .strip_prefix("--")
        .or_else(|| arg.strip_prefix('-').filter(letter))
        .map(|body| body.split([' ', '=']).next().unwrap_or(body));
    let line = match (error.kind(), name) {
        (ErrorKind::UnknownArgument, Some(name)) => {
            let meant = context(ContextKind::SuggestedArg);
            let meant = meant.map(|meant| format!("; did you mean -{}?", meant.trim_start_matches('-')));
            format!("-{}: there is no such setting{}", shown(name), meant.unwrap_or_default())
        }
        (ErrorKind::UnknownArgument, None) if !arg.starts_with('-') => {
            format!("{}: settings begin with a dash, and a switch takes its value as -name=value", shown(&arg))
        }
        (ErrorKind::InvalidValue | ErrorKind::TooFewValues | ErrorKind::WrongNumberOfValues, Some(name)) => {
            format!("-{name}: a value is missing")
        }
        _ => {
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default();
            shown(line.strip_prefix("error: ").unwrap_or(line))
        }
    };
    Stop::Refused(SettingsError::Usage(line))
}
