//! Settings that change while the daemon runs: which these are, what a second reading makes of those in force, and what has
//! to wait for the next start.
//!
//! Nothing here changes the daemon: `run::reload` does, with what comes of [`Settings::read_again`].

use std::collections::BTreeMap;

use super::error::{SettingsError, shown};
use super::model::Settings;
use super::rows::{self, Flag};
use super::source::Values;

/// The settings that change while the daemon runs: names, and beginnings of names, which end with a dash.
const LIVE: &[&str] = &[
    "rl-",
    "unproven-factor",
    "acl-",
    "proxied-from",
    "publishers",
    "beacon-flags-multicast",
    "beacon-flags-unicast",
    "repair-holddown",
    "cache-ttl",
    "cache-ttl-",
    "suppress-ack",
    "suppress-miss",
    "beacon-tier",
    "beacon-preference",
    "beacon-flags-draining",
    TOKEN,
    "log-level",
];

/// True for a setting that changes while the daemon runs; the others need a restart.
pub(super) fn is_live(name: &str) -> bool {
    LIVE.iter().any(|live| if live.ends_with('-') { name.starts_with(live) } else { name == *live })
}

/// A setting that has, or will have, another value.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Change {
    /// The flag, without dashes.
    pub name: &'static str,
    /// The value in force, without the passwords of URLs; empty when it is not set.
    pub from: String,
    /// The other one.
    pub to: String,
}

/// What a second reading makes of the settings in force.
#[derive(Clone, Debug)]
pub(crate) struct Reread {
    /// The settings that are to be in force: those that change while the daemon runs as they were read, the others as they are.
    pub settings: Settings,
    /// What changes now.
    pub changed: Vec<Change>,
}

impl Settings {
    /// Reads the files again. What was set by [`Settings::overridden`] is given up.
    ///
    /// # Errors
    /// What was read cannot stand: alone, or, as far as it changes now, beside the settings that need a restart.
    pub(crate) fn read_again(&self) -> Result<Reread, SettingsError> {
        let read = self.values.read_again()?;
        // All of it has to stand: the next start reads it.
        Self::of(&read)?;
        let mut reread = self.with(&self.values.merged(&read, |flag| self.changes(flag)))?;
        reread.settings.wait(self.values.differing(&read, |flag| self.changes(flag)));
        Ok(reread)
    }

    /// Sets values by the management API, until the files are read again; `None` ends what was set so.
    ///
    /// # Errors
    /// A name is no setting, a setting needs a restart, or the value cannot stand.
    pub(crate) fn overridden(&self, values: &BTreeMap<String, Option<String>>) -> Result<Reread, SettingsError> {
        let mut by_api = BTreeMap::new();
        for (name, text) in values {
            let refuse = |accepted: &str| SettingsError::Value {
                setting: format!("-{} (from {BY_API})", shown(name)),
                accepted: accepted.to_owned(),
            };
            let Some(flag) = rows::find(name) else {
                return Err(refuse("there is no such setting"));
            };
            if !self.changes(flag) {
                return Err(refuse("it needs a restart: set it by flag, variable or -config"));
            }
            if flag.name == TOKEN {
                return Err(refuse("it is set by flag, variable or -config"));
            }
            if by_api.insert(flag.name, text.clone()).is_some() {
                return Err(refuse("it is given twice"));
            }
        }
        let mut reread = self.with(&self.values.overridden(by_api))?;
        reread.settings.wait(self.waiting.clone());
        Ok(reread)
    }

    /// True for a setting that changes now. The table of sources' budgets has its size from the start, where there is such a budget.
    fn changes(&self, flag: &Flag) -> bool {
        flag.live && (flag.name != SOURCE_BYTES || self.limits.source_bytes != 0)
    }

    /// What the files have that the next start will use.
    pub(crate) fn waiting(&self) -> &[Change] {
        &self.waiting
    }

    fn wait(&mut self, waiting: Vec<Change>) {
        for one in &mut self.described {
            let change = waiting.iter().find(|change| change.name == one.flag.name);
            one.after_restart = change.map(|change| change.to.clone());
        }
        self.waiting = waiting;
    }

    fn with(&self, values: &Values) -> Result<Reread, SettingsError> {
        let settings = Self::of(values)?;
        let mut changed: Vec<Change> = rows::all()
            .filter(|flag| flag.live)
            .filter_map(|flag| {
                let value =
                    |of: &Self| of.described.iter().find(|one| one.flag.name == flag.name).map(|one| one.value.clone());
                let (from, to) = (value(self)?, value(&settings)?);
                // A long value is shown to its first characters.
                let is_cut = to.ends_with('…') && self.values.text(flag.name) != values.text(flag.name);
                (from != to || is_cut).then_some(Change { name: flag.name, from, to })
            })
            .collect();
        // Its file, or the variable, may have another token while the setting is the same.
        if self.admin.token != settings.admin.token && !changed.iter().any(|one| one.name == TOKEN) {
            changed.push(Change { name: TOKEN, from: "***".to_owned(), to: "***".to_owned() });
        }
        Ok(Reread { settings, changed })
    }
}

/// It needs a restart to be above 0, see [`Settings::changes`].
const SOURCE_BYTES: &str = "rl-source-bytes";
/// The setting of the token, which also stands for `ADMIN_TOKEN`.
const TOKEN: &str = "admin-token-file";
/// Where values of the management API come from, in refusals.
pub(super) const BY_API: &str = "POST /v1/config";

/// Of two readings, the settings that need a restart and differ.
pub(super) fn differing<'a>(
    now: impl Fn(&str) -> &'a str,
    next: impl Fn(&str) -> &'a str,
    changes: impl Fn(&Flag) -> bool,
) -> Vec<Change> {
    let restart = rows::all().filter(|flag: &&Flag| !changes(flag));
    restart
        .filter_map(|flag| {
            let (from, to) = (now(flag.name), next(flag.name));
            (from != to).then(|| Change { name: flag.name, from: shown(from), to: shown(to) })
        })
        .collect()
}
