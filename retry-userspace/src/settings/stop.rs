//! The end before the start: an exit code and what is said.

use std::fmt;

/// Why the program ends before it starts.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Stop {
    text: String,
    code: u8,
}

impl Stop {
    pub(super) fn text(text: String) -> Self {
        Self { text, code: 0 }
    }

    pub(super) fn usage(line: &str) -> Self {
        Self { text: one_line(&format!("{line} (-help lists all settings)")), code: 2 }
    }

    pub(super) fn bad_value(name: &str, value: &str, accepted: &str) -> Self {
        let value = if value.is_empty() { "is not set" } else { value };
        Self { text: one_line(&format!("{name} {value}: {accepted}")), code: 1 }
    }

    /// Exit code: 0 for help and version, 2 for usage, 1 for a value.
    pub const fn code(&self) -> u8 {
        self.code
    }

    /// True when the text is what was asked for.
    pub const fn to_stdout(&self) -> bool {
        self.code == 0
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What stands in a value may not forge a second line.
fn one_line(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}
