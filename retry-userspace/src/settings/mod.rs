//! Settings: flags, environment, cross-checks.
//!
//! Each setting is one row in `table/`: name, variable, default, bounds and text, at the field of [`Settings`] that it
//! fills. `-help`, the start and docs/configuration.md (`cargo xtask docs`) are made from these rows.
//!
//! The way of a value: `source` finds its text (flag, else variable, else file, else default), the row makes it a typed field within
//! its bounds, `checks` holds it against the others.

mod accepts;
mod checks;
mod config_file;
mod default_file;
mod duration;
mod env_file;
mod error;
mod hosts;
mod live;
mod model;
mod prefixes;
mod reference;
mod rows;
mod source;
mod table;
#[cfg(test)]
mod tests;
mod text_file;
mod values;

use std::ffi::OsString;
use std::sync::Arc;

pub use default_file::default_file;
pub(crate) use duration::parse as parse_duration;
pub(crate) use error::SettingsError;
pub use error::Stop;
pub use hosts::RedisNode;
pub(crate) use hosts::{Host, HostPort};
pub use live::Change;
pub(crate) use live::Reread;
pub use model::{Described, Settings};
pub(crate) use prefixes::prefix;
pub use reference::reference;
pub use rows::all;
pub(crate) use source::SetBy;
use source::Values;
pub(crate) use source::command;
pub use table::*;

impl Settings {
    /// The settings of a command line (program name first) and an environment.
    ///
    /// # Errors
    /// [`Stop`]: the text of `-help` or `-version`, or one line that names the setting, its value and what is accepted.
    pub fn from_args_and_env<E: Into<OsString>>(
        args: impl Iterator<Item = OsString>,
        env: impl Fn(&str) -> Option<E>,
    ) -> Result<Self, Stop> {
        let values = Values::collect(args, env)?;
        let settings = Self::of(&values)?;
        if values.check_only() {
            let set = settings.described.iter().filter(|one| one.set_by != SetBy::Default).count();
            return Err(Stop::Asked(format!(
                "the settings can stand: {set} set, {} by default",
                settings.described.len() - set
            )));
        }
        Ok(settings)
    }

    /// The settings of these values, checked one by one and together.
    fn of(values: &Values) -> Result<Self, SettingsError> {
        let mut settings = Self::read(&mut rows::Rows::of(values))?;
        checks::check(&settings, values)?;
        settings.described = all().map(|flag| settings.in_force(flag, values)).collect();
        settings.values = Arc::new(values.clone());
        Ok(settings)
    }

    /// Every setting as it is in force, in the order of `groups`.
    pub fn describe(&self) -> &[Described] {
        &self.described
    }
}
