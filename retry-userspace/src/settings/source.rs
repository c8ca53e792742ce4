//! Where a setting's value comes from: a flag beats the environment, the environment beats the default.

use std::collections::HashMap;
use std::ffi::OsString;

use clap::error::ErrorKind;
use clap::{Arg, ArgAction, Command};

use super::Stop;
use super::flags::{FLAGS, Flag};

/// Who set a value.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SetBy {
    /// The command line.
    Flag,
    /// The environment.
    Env,
    /// Nobody.
    Default,
}

/// Every setting's text and who set it.
#[derive(Debug)]
pub(super) struct Values(HashMap<&'static str, (String, SetBy)>);

impl Values {
    pub(super) fn collect(
        args: impl Iterator<Item = OsString>,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, Stop> {
        let matches = command().try_get_matches_from(args.map(two_dashes)).map_err(|error| stop_of(&error))?;
        let values = FLAGS.iter().map(|flag| {
            // Empty is unset, as the field's program has it.
            let from_env = || {
                std::iter::once(flag.env())
                    .chain(flag.env_aliases())
                    .find_map(|name| env(&name).filter(|value| !value.is_empty()))
            };
            let value = if let Some(value) = matches.get_one::<String>(flag.name) {
                (value.clone(), SetBy::Flag)
            } else if let Some(value) = from_env() {
                (value, SetBy::Env)
            } else {
                (flag.default.to_owned(), SetBy::Default)
            };
            (flag.name, value)
        });
        Ok(Self(values.collect()))
    }

    /// The text of a setting, `""` when it is not set.
    pub(super) fn text(&self, name: &str) -> &str {
        debug_assert!(self.0.contains_key(name), "{name} is no setting");
        self.0.get(name).map_or("", |(text, _)| text)
    }

    /// True when the operator set it.
    pub(super) fn is_set(&self, name: &str) -> bool {
        self.set_by(name) != SetBy::Default
    }

    pub(super) fn set_by(&self, name: &str) -> SetBy {
        self.0.get(name).map_or(SetBy::Default, |(_, by)| *by)
    }

    /// The value of a setting; the error names it, its text and what is accepted.
    pub(super) fn get<T>(&self, name: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Result<T, Stop> {
        let text = self.text(name);
        parse(text).map_err(|accepted| Stop::bad_value(name, text, &accepted))
    }
}

fn command() -> Command {
    let command = Command::new("retry-endpoint")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Keeps the recent frames of a multicast fabric and answers NACKs for them, in the kernel where it can.")
        .after_help(
            "Go style works: -name value, -name=value, -name. Variable of a setting: see docs/configuration.md.",
        );
    FLAGS.iter().fold(command, |command, flag| command.arg(arg_of(flag)))
}

fn arg_of(flag: &Flag) -> Arg {
    let default = if flag.default.is_empty() { "not set" } else { flag.default };
    let later = if flag.later { " (not available yet)" } else { "" };
    let arg = Arg::new(flag.name)
        .long(flag.name)
        .aliases(flag.aliases.iter().copied())
        .action(ArgAction::Set)
        .overrides_with(flag.name)
        .allow_negative_numbers(true)
        .help(format!("{} [default: {default}; env {}]{later}", flag.help, flag.env()));
    if flag.switch { arg.num_args(0..=1).require_equals(true).default_missing_value("true") } else { arg }
}

/// `-name` as `--name`; what only looks like it (`-h`, `-5`, `-`) stays.
fn two_dashes(arg: OsString) -> OsString {
    let Some(text) = arg.to_str() else { return arg };
    match text.strip_prefix('-') {
        Some(name) if name.len() > 1 && name.starts_with(|c: char| c.is_ascii_lowercase()) => {
            format!("--{name}").into()
        }
        _ => arg,
    }
}

fn stop_of(error: &clap::Error) -> Stop {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Stop::text(error.to_string().trim_end().to_owned()),
        _ => {
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default();
            Stop::usage(line.strip_prefix("error: ").unwrap_or(line))
        }
    }
}
