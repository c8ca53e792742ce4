//! The settings against the operator's surface. The tables are written by hand, not read from [`FLAGS`]: they are what an
//! operator's charts and scripts rely on.

mod documented;
mod effect;
mod refused;
mod surface;
mod written;

use std::ffi::OsString;

use super::*;

/// The settings of these arguments and these variables.
fn parse(args: &[&str], env: &[(&str, &str)]) -> Result<Settings, Stop> {
    let args = std::iter::once("retry-endpoint").chain(args.iter().copied()).map(OsString::from);
    Settings::from_args_and_env(args, |name| {
        env.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
    })
}

/// The settings of these arguments and an empty environment.
fn of(args: &[&str]) -> Settings {
    parse(args, &[]).unwrap_or_else(|stop| panic!("{args:?}: {stop}"))
}

/// Text of a setting and who set it.
fn text<'a>(settings: &'a Settings, name: &str) -> (&'a str, SetBy) {
    let found = settings.describe().iter().find(|described| described.flag.name == name);
    found.map(|described| (described.value.as_str(), described.set_by)).expect("the setting exists")
}

/// The exit code and the one line of a refusal.
fn refusal(args: &[&str], env: &[(&str, &str)]) -> (u8, String) {
    let stop = parse(args, env).expect_err(&format!("{args:?} {env:?} is refused"));
    let line = stop.to_string();
    assert!(!line.contains('\n') && !line.is_empty(), "{args:?}: one line, not {line:?}");
    assert!(!stop.to_stdout(), "{args:?}");
    (stop.code(), line)
}
