//! Settings: flags, environment, cross-checks.
//!
//! The way of a value: `source` finds its text (flag, else variable, else default), `read` makes it a typed field within
//! its bounds, `checks` holds it against the others. Each setting stands once in [`GROUPS`], which `-help`, this code and
//! docs/configuration.md share.

mod checks;
mod duration;
mod error;
mod flags;
mod hosts;
mod model;
mod read;
mod source;
mod table;
#[cfg(test)]
mod tests;
mod values;

use std::ffi::OsString;

pub(crate) use duration::parse as parse_duration;
pub use error::{SettingsError, Stop};
pub use flags::{Flag, Group, all};
pub use hosts::{Host, HostPort, RedisNode};
pub use model::*;
pub use source::SetBy;
use source::Values;
pub use table::GROUPS;

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
        let mut settings = read::settings(&values)?;
        checks::check(&settings, &values)?;
        settings.described = all().map(|flag| settings.in_force(flag, &values)).collect();
        Ok(settings)
    }

    /// Every setting as it is in force, in the order of [`GROUPS`].
    pub fn describe(&self) -> &[Described] {
        &self.described
    }

    fn in_force(&self, flag: &'static Flag, values: &Values) -> Described {
        let decides = match flag.name {
            name if name.starts_with("cache-ttl-") => read::ttl_source(values, name),
            "dedup-repeat-after" if self.dedup.repeat_after == self.dedup.window && !values.is_set(flag.name) => {
                "dedup-window"
            }
            name => name,
        };
        let value = match flag.name {
            "nack-workers" => self.nack.workers.to_string(),
            "instance" => self.telemetry.instance.clone(),
            "log-level" => self.telemetry.level.as_str().to_ascii_lowercase(),
            _ => error::shown(values.text(decides)),
        };
        Described { flag, value, set_by: values.set_by(decides) }
    }
}
