//! What was found: one line per subject, with what to do.

use std::fmt;

use serde_json::{Value, json};

/// How bad it is.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Level {
    /// It is well.
    Green,
    /// It cannot be told from here, which changes nothing.
    Unknown,
    /// The daemon works, and something costs frames, answers or time.
    Yellow,
    /// The daemon does not start, or does not answer.
    Red,
}

impl Level {
    const fn name(self) -> &'static str {
        match self {
            Self::Green => "green",
            Self::Unknown => "unknown",
            Self::Yellow => "yellow",
            Self::Red => "red",
        }
    }
}

/// One subject.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Finding {
    /// The subject: a name that stays, for programs.
    pub(super) name: &'static str,
    /// How bad it is.
    pub(super) level: Level,
    /// What was found.
    pub(super) found: String,
    /// What to do; empty when nothing is.
    pub(super) advice: String,
    /// The heading of docs/operations.md that tells more.
    pub(super) section: Option<&'static str>,
}

impl Finding {
    /// Nothing to do.
    pub(super) fn green(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, level: Level::Green, found: found.into(), advice: String::new(), section: None }
    }

    /// It cannot be told; `advice` says how it could.
    pub(super) fn unknown(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { level: Level::Unknown, advice: advice.into(), ..Self::green(name, found) }
    }

    /// Something costs frames, answers or time.
    pub(super) fn yellow(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { level: Level::Yellow, advice: advice.into(), ..Self::green(name, found) }
    }

    /// The daemon would not start, or not answer.
    pub(super) fn red(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { level: Level::Red, advice: advice.into(), ..Self::green(name, found) }
    }

    /// With the section of the runbook.
    pub(super) fn see(self, section: &'static str) -> Self {
        Self { section: Some(section), ..self }
    }

    fn json(&self) -> Value {
        json!({
            "name": self.name,
            "level": self.level.name(),
            "found": self.found,
            "do": self.advice,
            "runbook": self.section.map(anchor),
        })
    }
}

/// Where a section of the runbook stands.
pub(super) fn anchor(section: &str) -> String {
    format!("docs/operations.md#{}", section.to_lowercase().replace(' ', "-"))
}

/// All that was found.
#[derive(Clone, Debug, Default)]
pub(super) struct Findings(pub(super) Vec<Finding>);

impl Findings {
    /// The exit code: 0 for nothing worse than green, 1 for yellow, 2 for red.
    pub(super) fn code(&self) -> u8 {
        match self.worst() {
            Level::Green | Level::Unknown => 0,
            Level::Yellow => 1,
            Level::Red => 2,
        }
    }

    fn worst(&self) -> Level {
        self.0.iter().map(|finding| finding.level).max().unwrap_or(Level::Green)
    }

    /// One object with all of them.
    pub(super) fn json(&self) -> Value {
        let worst = match self.worst() {
            Level::Unknown => Level::Green,
            worst => worst,
        };
        json!({ "worst": worst.name(), "checks": self.0.iter().map(Finding::json).collect::<Vec<_>>() })
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Finding { name, level, found, advice, section } in &self.0 {
            writeln!(f, "{:<8} {name:<14} {found}", level.name())?;
            if !advice.is_empty() {
                writeln!(f, "{:<24}{advice}", "")?;
            }
            if let Some(section) = section.filter(|_| *level > Level::Green) {
                writeln!(f, "{:<24}see {}", "", anchor(section))?;
            }
        }
        Ok(())
    }
}
