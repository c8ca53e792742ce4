//! What the settings know and the daemon does not do yet. Such a value ends the start: it is never ignored.
//!
//! When a feature is built, its line goes from [`NOT_YET`], and the note from its row in docs/configuration.md.

use std::time::Duration;

use retry_common::group::SourceMode;

use super::error::{SettingsError, shown};
use super::groups::Settings;
use super::source::Values;

/// A setting, and whether its value asks for nothing that is missing.
pub(super) type Line = (&'static str, fn(&Settings) -> bool);

/// The settings whose only value is still their default.
pub(super) const NOT_YET: &[Line] = &[
    ("source-mode", |settings| settings.ingress.source_mode == SourceMode::Asm),
    ("ssm-bootstrap-manifest", |settings| settings.ssm.manifests.is_empty()),
    ("ssm-bootstrap-beacon", |settings| settings.ssm.beacons.is_empty()),
    ("ssm-bootstrap-subtree-announce", |settings| settings.ssm.subtree_announcers.is_empty()),
    ("ssm-publishers-static", |settings| settings.ssm.publishers.is_empty()),
    ("ssm-bootstrap-refresh", |settings| settings.ssm.refresh == Duration::from_secs(30)),
    ("proxy-discover", |settings| !settings.proxy.discover),
];

pub(super) fn check(settings: &Settings, values: &Values) -> Result<(), SettingsError> {
    match NOT_YET.iter().find(|(_, is_idle)| !is_idle(settings)) {
        Some((flag, _)) => Err(SettingsError::NotAvailable { flag, value: shown(values.text(flag)) }),
        None => Ok(()),
    }
}
