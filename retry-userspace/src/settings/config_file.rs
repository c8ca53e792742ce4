//! The file of settings (`-config`): TOML, whose keys are the names of the flags.

use std::collections::HashMap;

use toml::Value;

use super::error::{SettingsError, shown};
use super::rows::{self, Flag};
use super::text_file;

/// The settings that say where settings are: a file cannot set them.
const NOT_HERE: [&str; 2] = ["config", "env-file"];

/// The texts of the file's settings, by name, as a flag would have them; `setting` names the file in refusals.
///
/// # Errors
/// The file cannot be read or is no TOML, a key is no setting, or a value is of no type that the setting takes.
pub(super) fn read(path: &str, setting: &str) -> Result<HashMap<&'static str, String>, SettingsError> {
    let text = text_file::read(path)
        .map_err(|error| refuse(setting.to_owned(), format!("a readable file is accepted: {error}")))?;
    parse(&text, path, setting)
}

fn refuse(setting: String, accepted: impl Into<String>) -> SettingsError {
    SettingsError::Value { setting, accepted: accepted.into() }
}

fn parse(text: &str, path: &str, setting: &str) -> Result<HashMap<&'static str, String>, SettingsError> {
    let table: toml::Table = toml::from_str(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        let number = text.get(..at).unwrap_or_default().matches('\n').count();
        let (line, why) = (shown(text.lines().nth(number).unwrap_or_default()), shown(error.message()));
        refuse(setting.to_owned(), format!("TOML is accepted: line {}, {line}: {why}", number + 1))
    })?;
    let mut settings = HashMap::new();
    for (key, value) in table {
        let here = || format!("{} (from {})", shown(&key), shown(path));
        let flag = rows::find(&key).ok_or_else(|| {
            refuse(format!("{} {}", here(), in_words(&value)), "there is no such setting (-help lists all)")
        })?;
        if NOT_HERE.contains(&flag.name) {
            return Err(refuse(here(), "it is accepted as a flag or a variable"));
        }
        let text = text_of(flag, &value).map_err(|accepted| {
            refuse(format!("-{} (from {}) {}", flag.name, shown(path), in_words(&value)), accepted)
        })?;
        if settings.insert(flag.name, text).is_some() {
            return Err(refuse(here(), format!("it is accepted once: -{} stands there too", flag.name)));
        }
    }
    Ok(settings)
}

/// A value as a refusal shows it.
fn in_words(value: &Value) -> String {
    match value {
        Value::String(text) => shown(text),
        value => shown(&value.to_string()),
    }
}

/// A value as a flag would have it.
fn text_of(flag: &Flag, value: &Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Integer(number) => Ok(number.to_string()),
        Value::Float(number) => Ok(number.to_string()),
        Value::Boolean(truth) if flag.is_switch => Ok(truth.to_string()),
        Value::Array(parts) if flag.is_list() => {
            let texts: Option<Vec<&str>> = parts.iter().map(Value::as_str).collect();
            let texts = texts.filter(|texts| !texts.iter().any(|text| text.contains(',')));
            texts.map(|texts| texts.join(",")).ok_or_else(|| "an array of strings is accepted".to_owned())
        }
        Value::Boolean(_) | Value::Array(_) | Value::Datetime(_) | Value::Table(_) => {
            Err(format!("{} is accepted", flag.accepted))
        }
    }
}
