//! Where a setting's value comes from: a flag beats the environment, the environment beats the default.

use std::collections::HashMap;
use std::ffi::OsString;

use clap::error::ErrorKind;
use clap::{Arg, ArgAction, Command};

use super::flags::{FLAGS, Flag};
use super::stop::Stop;

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

/// Every setting's text and where it comes from.
#[derive(Debug)]
pub(super) struct Values(HashMap<&'static str, Value>);

#[derive(Debug)]
struct Value {
    text: String,
    set_by: SetBy,
    /// The variable that set it.
    variable: Option<String>,
}

impl Values {
    pub(super) fn collect<E>(
        args: impl Iterator<Item = OsString>,
        env: impl Fn(&str) -> Option<E>,
    ) -> Result<Self, Stop>
    where
        E: Into<OsString>,
    {
        let args = args.map(two_dashes).collect::<Result<Vec<String>, Stop>>()?;
        let matches = command().try_get_matches_from(args).map_err(|error| stop_of(&error))?;
        let mut values = HashMap::new();
        for flag in FLAGS {
            // Empty is unset, as the field's program has it.
            let from_env = || {
                std::iter::once(flag.env()).chain(flag.env_aliases()).find_map(|name| {
                    let value: OsString = env(&name)?.into();
                    (!value.is_empty()).then_some((name, value))
                })
            };
            let value = if let Some(text) = matches.get_one::<String>(flag.name) {
                Value { text: text.clone(), set_by: SetBy::Flag, variable: None }
            } else if let Some((name, text)) = from_env() {
                let text = text
                    .into_string()
                    .map_err(|text| Stop::bad_value(&name, &text.to_string_lossy(), "UTF-8 is accepted"))?;
                Value { text, set_by: SetBy::Env, variable: Some(name) }
            } else {
                Value { text: flag.default.to_owned(), set_by: SetBy::Default, variable: None }
            };
            values.insert(flag.name, value);
        }
        Ok(Self(values))
    }

    /// The text of a setting, `""` when it is not set.
    pub(super) fn text(&self, name: &str) -> &str {
        debug_assert!(self.0.contains_key(name), "{name} is no setting");
        self.0.get(name).map_or("", |value| &value.text)
    }

    /// True when the operator set it.
    pub(super) fn is_set(&self, name: &str) -> bool {
        self.set_by(name) != SetBy::Default
    }

    pub(super) fn set_by(&self, name: &str) -> SetBy {
        self.0.get(name).map_or(SetBy::Default, |value| value.set_by)
    }

    /// The value of a setting; the error names it, its text and what is accepted.
    pub(super) fn get<T>(&self, name: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Result<T, Stop> {
        parse(self.text(name)).map_err(|accepted| self.refuse(name, &accepted))
    }

    /// The refusal of a setting's value: it names the setting, and the variable if that set it.
    pub(super) fn refuse(&self, name: &str, accepted: &str) -> Stop {
        let shown = match self.0.get(name).and_then(|value| value.variable.as_deref()) {
            Some(variable) => format!("-{name} (from {variable})"),
            None => format!("-{name}"),
        };
        Stop::bad_value(&shown, self.text(name), accepted)
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
fn two_dashes(arg: OsString) -> Result<String, Stop> {
    let arg = arg.into_string().map_err(|arg| Stop::usage(&format!("argument {arg:?} is not UTF-8")))?;
    Ok(match arg.strip_prefix('-') {
        Some(name) if name.len() > 1 && name.starts_with(|c: char| c.is_ascii_lowercase()) => format!("--{name}"),
        _ => arg,
    })
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
