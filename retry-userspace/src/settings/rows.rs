//! What a setting is, whatever its type: [`Row`] as the tables write it, [`Flag`] as `-help` and the documents show it,
//! and [`Rows`], which reads the rows one after the other.

use std::sync::LazyLock;

use super::accepts::Accepts;
use super::error::SettingsError;
use super::live;
use super::model::Settings;
use super::source::Values;

/// A typed value, or why the text cannot stand.
pub(super) type Read<T> = Result<T, SettingsError>;

/// One setting. The field that it fills is the one that the row stands at, in `settings/table/`.
pub(super) struct Row<T> {
    /// The flag, without dashes.
    pub(super) flag: &'static str,
    /// The environment variable.
    pub(super) env: &'static str,
    /// What is read when neither is set; empty is "not set".
    pub(super) default: &'static str,
    /// Type, unit and bounds.
    pub(super) accepts: Accepts<T>,
    /// What it means.
    pub(super) meaning: &'static str,
    /// What follows from it.
    pub(super) consequence: &'static str,
}

/// A former name of a setting, which still works.
#[derive(Clone, Copy, Debug)]
pub struct Alias {
    /// The flag, without dashes.
    pub flag: &'static str,
    /// The environment variable.
    pub env: &'static str,
}

/// One setting, whatever its type.
#[derive(Clone, Debug)]
pub struct Flag {
    /// The flag, without dashes.
    pub name: &'static str,
    /// Its environment variable.
    pub env: &'static str,
    /// Former names of it.
    pub aliases: &'static [Alias],
    /// What it is when it is not set; empty is "not set".
    pub default: &'static str,
    /// True when `-name` alone means `-name=true`.
    pub is_switch: bool,
    /// Type, unit and bounds in words.
    pub accepted: String,
    /// What it means.
    pub meaning: &'static str,
    /// What follows from it.
    pub consequence: &'static str,
    /// True when it changes while the daemon runs; else a change needs a restart.
    pub live: bool,
}

impl Flag {
    /// True for a comma list.
    pub(super) fn is_list(&self) -> bool {
        self.accepted.contains("comma")
    }
}

/// Settings that belong together.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    /// Heading in `-help` and docs/configuration.md.
    pub title: &'static str,
    /// The settings.
    pub flags: Vec<Flag>,
}

/// All settings by group, in the order in which a frame and then a NACK meets them.
static GROUPS: LazyLock<Vec<Group>> = LazyLock::new(|| {
    let mut rows = Rows { values: None, groups: Vec::new() };
    let defaults = Settings::read(&mut rows);
    debug_assert!(defaults.is_ok(), "a default is refused: {defaults:?}");
    rows.groups
});

/// All settings by group, in the order of `-help` and docs/configuration.md.
pub(crate) fn groups() -> &'static [Group] {
    &GROUPS
}

/// All settings, in the order of `-help` and docs/configuration.md.
pub fn all() -> impl Iterator<Item = &'static Flag> {
    groups().iter().flat_map(|group| &group.flags)
}

/// The setting of a name, also of a former one.
pub(super) fn find(name: &str) -> Option<&'static Flag> {
    all().find(|flag| flag.name == name || flag.aliases.iter().any(|alias| alias.flag == name))
}

/// Reads rows: from an operator's values, or from the defaults alone in order to list the rows.
pub(super) struct Rows<'a> {
    values: Option<&'a Values>,
    groups: Vec<Group>,
}

impl<'a> Rows<'a> {
    pub(super) const fn of(values: &'a Values) -> Self {
        Self { values: Some(values), groups: Vec::new() }
    }

    /// The rows that follow stand below this heading.
    pub(super) fn group(&mut self, title: &'static str) {
        self.groups.push(Group { title, flags: Vec::new() });
    }

    /// The value of a setting.
    ///
    /// # Errors
    /// Its text is not accepted.
    pub(super) fn read<T>(&mut self, row: Row<T>) -> Read<T> {
        self.read_with_aliases(row, &[])
    }

    /// The value of a setting that has former names.
    ///
    /// # Errors
    /// Its text is not accepted.
    pub(super) fn read_with_aliases<T>(&mut self, row: Row<T>, aliases: &'static [Alias]) -> Read<T> {
        let Row { flag: name, env, default, accepts, meaning, consequence } = row;
        let Accepts { words, is_switch, parse } = accepts;
        match self.values {
            Some(values) => values.get(name, parse),
            None => {
                let value = parse(default).map_err(|accepted| self.refusal(name, accepted));
                let (accepted, live) = (words, live::is_live(name));
                let flag = Flag { name, env, aliases, default, is_switch, accepted, meaning, consequence, live };
                if let Some(group) = self.groups.last_mut() {
                    group.flags.push(flag);
                }
                value
            }
        }
    }

    /// True when the operator set it, by flag or by variable.
    pub(super) fn is_set(&self, name: &str) -> bool {
        self.values.is_some_and(|values| values.is_set(name))
    }

    /// Why the value of `name` cannot stand.
    pub(super) fn refusal(&self, name: &str, accepted: impl Into<String>) -> SettingsError {
        let accepted = accepted.into();
        match self.values {
            Some(values) => values.refusal(name, accepted),
            None => SettingsError::Value { setting: format!("-{name}"), accepted },
        }
    }

    /// The variable `ADMIN_TOKEN`, when it is set.
    pub(super) fn admin_token(&self) -> Option<&str> {
        self.values.and_then(Values::admin_token)
    }
}
