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
    /// The lists of who may ask cannot be put in force.
    #[error("{0}")]
    Lists(String),
    /// The files of the management API's TLS cannot be used.
    #[error("{0}")]
    Tls(String),
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
            Self::Refused(SettingsError::Value { .. } | SettingsError::Lists(_) | SettingsError::Tls(_)) => 1,
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
    let mut line = String::new();
    for (place, c) in without_passwords(value).chars().enumerate() {
        if place == LONGEST {
            line.push('…');
            break;
        }
        if c.is_control() { line.extend(c.escape_default()) } else { line.push(c) }
    }
    line
}

/// `redis://user:secret@host` as `redis://***@host`, in a comma list too.
///
/// A comma may stand in a password as well: it ends an address only where another scheme begins.
fn without_passwords(value: &str) -> String {
    let begins = |part: &str| {
        let scheme = part.split_once("://").map(|(scheme, _)| scheme.trim());
        scheme.is_some_and(|scheme| scheme.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'+'))
    };
    let mut addresses: Vec<String> = Vec::new();
    for part in value.split(',') {
        match addresses.last_mut().filter(|_| !begins(part)) {
            Some(address) => address.extend([",", part]),
            None => addresses.push(part.to_owned()),
        }
    }
    addresses.iter().map(|address| without_password(address)).collect::<Vec<_>>().join(",")
}

fn without_password(address: &str) -> String {
    let Some((login, host)) = address.rsplit_once('@') else {
        return address.to_owned();
    };
    // Without a scheme (an operator may forget it) the login is a word of what may be a sentence.
    let kept = match login.split_once("://") {
        Some((scheme, _)) => scheme.len() + "://".len(),
        None => login.rfind(char::is_whitespace).map_or(0, |space| space + 1),
    };
    format!("{}***@{host}", login.get(..kept).unwrap_or_default())
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

    #[test]
    fn no_part_of_a_password_is_shown() {
        for (value, line) in [
            ("redis://me:p,w@h:1", "redis://***@h:1"),
            ("redis+sentinel://me:p,w@a:1,b:2/name", "redis+sentinel://***@a:1,b:2/name"),
            ("redis://a:x@h1:1,redis://b:y,z@h2:2", "redis://***@h1:1,redis://***@h2:2"),
            ("redis://me:p://w@h:1", "redis://***@h:1"),
            // Without the scheme it is refused, and still not shown.
            ("me:secret@r:6379", "***@r:6379"),
            ("a:1,me:secret@r:6379", "***@r:6379"),
            ("no value for 'me:secret@r:6379'", "no value for ***@r:6379'"),
            ("a:1,b:2", "a:1,b:2"),
        ] {
            assert_eq!(shown(value), line);
        }
    }
}
