//! Where a setting's value comes from: a flag beats the environment, the environment beats the file, the file beats the
//! default. What the management API sets beats all of them, until the files are read again.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, Command};

use super::error::{SettingsError, Stop, shown};
use super::live::{self, BY_API, Change};
use super::rows::{self, Flag, groups};
use super::{config_file, env_file, values};

/// What `-version` says behind the program's name: version, commit and build date.
const VERSION: &str =
    concat!(env!("CARGO_PKG_VERSION"), " (commit ", env!("RETRY_COMMIT"), ", built ", env!("RETRY_BUILD_DATE"), ")");

/// Who set a value.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SetBy {
    /// The command line.
    Flag,
    /// The environment, or the file of variables.
    Env,
    /// The file of settings.
    File,
    /// The management API.
    Api,
    /// None of these.
    Default,
}

/// Every setting's text and who set it.
#[derive(Clone, Default)]
pub(super) struct Values {
    sources: Arc<Sources>,
    /// As the sources had them when they were last read.
    read: Texts,
    /// Those in force.
    settings: Texts,
    /// `ADMIN_TOKEN`: a secret has no flag, where every user of the host could read it.
    admin_token: Option<String>,
}

type Texts = HashMap<&'static str, Value>;

#[derive(Clone)]
struct Value {
    text: String,
    set_by: SetBy,
    /// Where the text comes from, where that is not plain: the variable, the file.
    from: Option<String>,
}

impl Value {
    /// How a refusal names the setting of this name with this value.
    fn named(&self, name: &str) -> String {
        let value = if self.text.is_empty() { "is not set".to_owned() } else { shown(&self.text) };
        match &self.from {
            Some(from) => format!("-{name} (from {from}) {value}"),
            None => format!("-{name} {value}"),
        }
    }
}

/// They hold secrets.
impl fmt::Debug for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Values(***)")
    }
}

/// What the daemon was started with.
#[derive(Default)]
struct Sources {
    /// By setting.
    flags: HashMap<&'static str, String>,
    /// Variables of settings, by name.
    environment: HashMap<&'static str, OsString>,
    /// Variables that the environment had, at the start, from the file of variables: that file alone says what they are.
    of_env_file: HashSet<&'static str>,
    /// `-check-config`: the settings are all that is looked at.
    check_only: bool,
}

/// The flag that is no setting: all are read and checked, and nothing is started.
pub(super) const CHECK_CONFIG: &str = "check-config";
/// The variable of the management API's token.
const ADMIN_TOKEN: &str = "ADMIN_TOKEN";
/// The settings that say where settings are.
const CONFIG: &str = "config";
const ENV_FILE: &str = "env-file";
/// The variable that names the file of variables, which cannot name itself.
const ENV_FILE_VARIABLE: &str = "ENV_FILE";

impl Sources {
    /// The command line and the environment, and the variables of the file that they name.
    fn new<E: Into<OsString>>(
        args: impl Iterator<Item = OsString>,
        env: impl Fn(&str) -> Option<E>,
    ) -> Result<(Self, HashMap<String, String>), Stop> {
        let args = from_go_style(args);
        if let Some(arg) = args.iter().skip(1).find(|arg| arg.to_str().is_none()) {
            let line = format!("{}: UTF-8 is accepted", shown(&arg.to_string_lossy()));
            return Err(SettingsError::Usage(line).into());
        }
        let matches = command().try_get_matches_from(args).map_err(|error| stop_of(&error))?;
        let flags = rows::all().filter_map(|flag| Some((flag.name, matches.get_one::<String>(flag.name)?.clone())));
        let names = rows::all().flat_map(variables).chain([ADMIN_TOKEN]);
        let mut sources = Self {
            flags: flags.collect(),
            environment: names.filter_map(|name| Some((name, env(name)?.into()))).collect(),
            of_env_file: HashSet::new(),
            check_only: matches.get_flag(CHECK_CONFIG),
        };
        let of_file = sources.env_file(true)?;
        sources.of_env_file = sources
            .environment
            .iter()
            .filter(|(name, text)| of_file.get(**name).is_some_and(|of_file| text.as_os_str() == of_file.as_str()))
            .map(|(name, _)| *name)
            .collect();
        Ok((sources, of_file))
    }

    /// The variables of `-env-file`; none without one.
    fn env_file(&self, is_start: bool) -> Result<HashMap<String, String>, SettingsError> {
        // It is not named by itself.
        match self.path(ENV_FILE, &HashMap::new())? {
            Some((path, setting)) => env_file::read(&path, &setting, is_start),
            None => Ok(HashMap::new()),
        }
    }

    /// The path that a setting has, where it has one, and how refusals name it.
    fn path(
        &self,
        name: &'static str,
        of_file: &HashMap<String, String>,
    ) -> Result<Option<(String, String)>, SettingsError> {
        let Some(value) = self.text_of(name, of_file)? else { return Ok(None) };
        let setting = value.named(name);
        match values::optional_text_path(&value.text) {
            Ok(path) => Ok(path.map(|path| (path, setting))),
            Err(accepted) => Err(SettingsError::Value { setting, accepted }),
        }
    }

    /// The variable of this name, where it is set; empty is unset, as the field's program has it.
    fn variable(&self, name: &str, of_file: &HashMap<String, String>) -> Option<OsString> {
        let text = match of_file.get(name).filter(|_| name != ENV_FILE_VARIABLE) {
            Some(text) => OsString::from(text),
            None if self.of_env_file.contains(name) => return None,
            None => self.environment.get(name)?.clone(),
        };
        (!text.is_empty()).then_some(text)
    }

    /// The value of a setting by flag or variable.
    fn text_of(&self, name: &'static str, of_file: &HashMap<String, String>) -> Result<Option<Value>, SettingsError> {
        if let Some(text) = self.flags.get(name) {
            return Ok(Some(Value { text: text.clone(), set_by: SetBy::Flag, from: None }));
        }
        let set = rows::find(name)
            .into_iter()
            .flat_map(variables)
            .find_map(|variable| Some((variable, self.variable(variable, of_file)?)));
        let Some((variable, text)) = set else { return Ok(None) };
        // The file is not named by itself: its own name comes from no file.
        let file = if of_file.contains_key(variable) { self.env_file_path() } else { None };
        let from = match file {
            Some(file) => format!("{variable} in {}", shown(&file)),
            None => variable.to_owned(),
        };
        let text = text.into_string().map_err(|text| SettingsError::Value {
            setting: format!("-{name} (from {from}) {}", shown(&text.to_string_lossy())),
            accepted: "UTF-8 is accepted".to_owned(),
        })?;
        Ok(Some(Value { text, set_by: SetBy::Env, from: Some(from) }))
    }

    /// The file of variables, without the dash.
    fn env_file_path(&self) -> Option<String> {
        let value = self.text_of(ENV_FILE, &HashMap::new()).ok()??;
        Some(value.text.strip_prefix('-').unwrap_or(&value.text).to_owned())
    }

    /// All settings, and `ADMIN_TOKEN`; `of_env_file` has the variables of the file.
    fn read(&self, of_env_file: &HashMap<String, String>) -> Result<(Texts, Option<String>), SettingsError> {
        let config = self.path(CONFIG, of_env_file)?;
        let of_config = match &config {
            Some((path, setting)) => config_file::read(path, setting)?,
            None => HashMap::new(),
        };
        let config = config.map(|(path, _)| shown(&path));
        let values = rows::all().map(|flag| {
            let value = match (self.text_of(flag.name, of_env_file)?, of_config.get(flag.name)) {
                (Some(value), _) => value,
                (None, Some(text)) => Value { text: text.clone(), set_by: SetBy::File, from: config.clone() },
                (None, None) => Value { text: flag.default.to_owned(), set_by: SetBy::Default, from: None },
            };
            Ok((flag.name, value))
        });
        let token = self.variable(ADMIN_TOKEN, of_env_file).map(|text| text.to_string_lossy().into_owned());
        Ok((values.collect::<Result<_, SettingsError>>()?, token))
    }
}

/// The names of a setting's variable.
fn variables(flag: &'static Flag) -> impl Iterator<Item = &'static str> {
    std::iter::once(flag.env).chain(flag.aliases.iter().map(|alias| alias.env))
}

impl Values {
    pub(super) fn collect<E: Into<OsString>>(
        args: impl Iterator<Item = OsString>,
        env: impl Fn(&str) -> Option<E>,
    ) -> Result<Self, Stop> {
        let (sources, of_env_file) = Sources::new(args, env)?;
        let (read, admin_token) = sources.read(&of_env_file)?;
        let settings = read.clone();
        Ok(Self { sources: Arc::new(sources), read, settings, admin_token })
    }

    /// What the same sources have now.
    pub(super) fn read_again(&self) -> Result<Self, SettingsError> {
        let (read, admin_token) = self.sources.read(&self.sources.env_file(false)?)?;
        let (sources, settings) = (Arc::clone(&self.sources), read.clone());
        Ok(Self { sources, read, settings, admin_token })
    }

    /// These values with what changes while the daemon runs as `next` has it.
    pub(super) fn merged(&self, next: &Self, changes: impl Fn(&Flag) -> bool) -> Self {
        let settings = rows::all().filter_map(|flag| {
            let from = if changes(flag) { next } else { self };
            Some((flag.name, from.settings.get(flag.name)?.clone()))
        });
        Self { settings: settings.collect(), ..next.clone() }
    }

    /// These values with some set by the management API; `None` ends what it has set.
    pub(super) fn overridden(&self, by_api: BTreeMap<&'static str, Option<String>>) -> Self {
        let mut values = self.clone();
        for (name, text) in by_api {
            let value = match text {
                Some(text) => Some(Value { text, set_by: SetBy::Api, from: Some(BY_API.to_owned()) }),
                None => self.read.get(name).cloned(),
            };
            values.settings.extend(value.map(|value| (name, value)));
        }
        values
    }

    /// The settings that need a restart and that `next` has otherwise.
    pub(super) fn differing(&self, next: &Self, changes: impl Fn(&Flag) -> bool) -> Vec<Change> {
        live::differing(|name| self.text(name), |name| next.text(name), changes)
    }

    /// True with `-check-config`: the daemon does not start.
    pub(super) fn check_only(&self) -> bool {
        self.sources.check_only
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

    /// True when the operator set it.
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
        let setting = self.settings.get(name).map_or_else(|| format!("-{name}"), |value| value.named(name));
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
            "One dash or two. A flag beats its variable, a variable beats -config, -config beats the default; an empty variable is not set.\n\
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
