//! What the program knows about each setting, whatever its type: [`Flag`], and how to find one.

use super::table::GROUPS;

/// One setting.
#[derive(Clone, Copy, Debug)]
pub struct Flag {
    /// The flag, without dashes.
    pub name: &'static str,
    /// Its environment variable, where that is not the name in upper snake case.
    pub env_name: Option<&'static str>,
    /// Other names for it.
    pub aliases: &'static [&'static str],
    /// What it is when it is not set; empty is "not set".
    pub default: &'static str,
    /// True when `-name` alone means `-name=true`.
    pub switch: bool,
    /// What it means, and what is accepted.
    pub meaning: &'static str,
    /// What follows from it.
    pub consequence: &'static str,
}

/// Settings that belong together.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    /// Heading in `-help` and docs/configuration.md.
    pub title: &'static str,
    /// The settings.
    pub flags: &'static [Flag],
}

impl Flag {
    /// Its environment variable.
    pub fn env(&self) -> String {
        self.env_name.map_or_else(|| env_of(self.name), str::to_owned)
    }

    /// The variables of its other names.
    pub fn env_aliases(&self) -> impl Iterator<Item = String> {
        self.aliases.iter().map(|alias| env_of(alias))
    }
}

/// All settings, in the order of `-help` and docs/configuration.md.
pub fn all() -> impl Iterator<Item = &'static Flag> {
    GROUPS.iter().flat_map(|group| group.flags)
}

/// The setting of a name or of another name for it.
pub(super) fn find(name: &str) -> Option<&'static Flag> {
    all().find(|flag| flag.name == name || flag.aliases.contains(&name))
}

fn env_of(name: &str) -> String {
    name.to_uppercase().replace('-', "_")
}

/// A setting that takes a value.
pub(super) const fn value(
    name: &'static str,
    default: &'static str,
    meaning: &'static str,
    consequence: &'static str,
) -> Flag {
    Flag { name, env_name: None, aliases: &[], default, switch: false, meaning, consequence }
}

/// A setting that is true or false.
pub(super) const fn switch(
    name: &'static str,
    default: &'static str,
    meaning: &'static str,
    consequence: &'static str,
) -> Flag {
    Flag { switch: true, ..value(name, default, meaning, consequence) }
}
