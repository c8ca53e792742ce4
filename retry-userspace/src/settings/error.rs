//! Why the program ends before it starts.

use std::fmt;

/// A setting that cannot stand. Its text is one line: the setting, its value, what is accepted.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SettingsError {
    /// The command line is not one: an unknown flag, a missing value, a stray word.
    #[error("{0} (-help lists all settings)")]
    Usage(String),
    /// The value is none that the setting takes, or does not go with another setting.
    #[error("{setting}: {accepted}")]
    Value {
        /// The flag, its value, and its variable when that is where the value comes from.
        setting: String,
        /// What is accepted.
        accepted: String,
    },
}

/// The end of a program that has not started: what to say, where, and the exit code.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Stop {
    /// The operator asked for this text: `-help` or `-version`.
    Asked(String),
    /// The settings cannot stand.
    Refused(SettingsError),
}

impl Stop {
    /// Exit code: 0 for help and version, 2 for usage, 1 for a value.
    pub const fn code(&self) -> u8 {
        match self {
            Self::Asked(_) => 0,
            Self::Refused(SettingsError::Usage(_)) => 2,
            Self::Refused(SettingsError::Value { .. }) => 1,
        }
    }

    /// The text belongs on stdout, because it was asked for; any other on stderr.
    pub const fn to_stdout(&self) -> bool {
        matches!(self, Self::Asked(_))
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Asked(text) => f.write_str(text),
            Self::Refused(error) => error.fmt(f),
        }
    }
}

impl From<SettingsError> for Stop {
    fn from(error: SettingsError) -> Self {
        Self::Refused(error)
    }
}

/// A value as it may be shown: one line, not endless, and without the password of a URL.
pub(super) fn shown(value: &str) -> String {
    const LONGEST: usize = 160;
    let safe: Vec<String> = value.split(',').map(without_password).collect();
    let mut line = String::new();
    for (place, c) in safe.join(",").chars().enumerate() {
        if place == LONGEST {
            line.push('…');
            break;
        }
        if c.is_control() { line.extend(c.escape_default()) } else { line.push(c) }
    }
    line
}

/// `redis://user:secret@host` as `redis://***@host`.
fn without_password(address: &str) -> String {
    match address.split_once("://") {
        Some((scheme, rest)) => match rest.rsplit_once('@') {
            Some((_, host)) => format!("{scheme}://***@{host}"),
            None => address.to_owned(),
        },
        None => address.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_one_line_without_secrets() {
        assert_eq!(shown("a\nb\u{1b}[31m"), "a\\nb\\u{1b}[31m");
        assert_eq!(shown("redis://me:p@ss@h:1/0,rediss://h:2"), "redis://***@h:1/0,rediss://h:2");
        assert_eq!(shown(&"x".repeat(500)).chars().count(), 161);
    }
}
