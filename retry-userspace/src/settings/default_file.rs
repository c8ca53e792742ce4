//! `/etc/default/retry-endpoint` of the packages, made from the rows: every setting with its default, commented out.

use std::fmt::Write as _;

use super::rows::{Flag, groups};

/// Columns of a comment.
const COLUMNS: usize = 100;

const HEAD: &str = "\
# Settings of retry-endpoint.service. Those that are commented out show the default; the unit sets
# STATE_DIR, FDSTORE and ENV_FILE. After a change: systemctl reload retry-endpoint. Settings that are marked live change
# then, and the log names those that wait for: systemctl restart retry-endpoint
#
# A secret does not belong in a command line: ADMIN_TOKEN, the token of the management API, is a variable
# without a flag. Where this file is to hold it, close the file to other users, and let the service read it again:
# chgrp retry-endpoint, chmod 0640.
#ADMIN_TOKEN=
";

/// The file's text.
pub fn default_file() -> String {
    let mut text = HEAD.to_owned();
    for group in groups() {
        let _ = write!(text, "\n## {}\n", group.title);
        // The file does not name itself.
        for flag in group.flags.iter().filter(|flag| flag.name != "env-file") {
            entry(&mut text, flag);
        }
    }
    text
}

fn entry(text: &mut String, flag: &Flag) {
    text.push_str("\n#");
    let mut column = 1;
    let live = if flag.live { " Live." } else { "" };
    let said =
        format!("{} {} Accepted: {}.{live} Flag: -{}.", flag.meaning, flag.consequence, flag.accepted, flag.name);
    for word in said.split_whitespace() {
        if column + 1 + word.chars().count() > COLUMNS {
            text.push_str("\n#");
            column = 1;
        }
        let _ = write!(text, " {word}");
        column += 1 + word.chars().count();
    }
    let _ = write!(text, "\n#{}={}\n", flag.env, flag.default);
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::ffi::OsString;

    use super::*;
    use crate::settings::{Settings, all};

    /// What an operator gets who removes the number signs before all variables: the defaults, and nothing that is refused.
    #[test]
    fn every_setting_stands_in_it_with_its_default() {
        let text = default_file();
        let variables: HashMap<&str, &str> = text
            .lines()
            .filter_map(|line| line.strip_prefix('#')?.split_once('='))
            .filter(|(name, _)| !name.contains(' '))
            .collect();
        for flag in all().filter(|flag| flag.name != "env-file") {
            assert_eq!(variables.get(flag.env), Some(&flag.default), "{}", flag.name);
        }
        assert_eq!(variables.len(), all().count(), "ADMIN_TOKEN in the place of ENV_FILE, and no other variable");
        let settings = Settings::from_args_and_env([OsString::from("retry-endpoint")].into_iter(), |name| {
            variables.get(name).copied()
        });
        assert!(settings.is_ok(), "{settings:?}");
        let longest = text.lines().map(|line| line.chars().count()).max().unwrap_or(0);
        assert!(longest <= 200, "a line of {longest}");
    }
}
