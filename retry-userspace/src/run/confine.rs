//! What the process gives up before its first thread: capabilities, and system calls that it does not use.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;

use super::StartError;
use crate::datapath;
use crate::fdstore;
use crate::privileges::{self, Rights};
use crate::settings::{Settings, XdpMode};

/// Permission of all users to read.
const OTHERS_READ: u32 = 0o004;

/// Gives up, for good, what a daemon with these settings does not need: to be called once, before threads are started.
///
/// What needs more comes first: mounting bpffs where it is not mounted.
///
/// # Errors
/// [`StartError::Seccomp`]: there is no filter although there is to be one. Capabilities that the kernel does not take back are a
/// warning.
pub fn confine(settings: &Settings) -> Result<(), StartError> {
    if settings.xdp.mode != XdpMode::Off
        && let Err(error) = datapath::mount_bpffs(&settings.xdp.bpffs)
    {
        // The start says it again where it needs it.
        tracing::debug!(%error, "no BPF file system");
    }
    if let Err(error) = privileges::give_up_unused(settings) {
        tracing::warn!(%error, "capabilities that are not needed are kept: the kernel does not take them back");
    }
    look_at_files(settings);
    let seccomp = settings.privileges.seccomp;
    let holder = fdstore::starts_holder(settings.xdp.handover);
    privileges::filter_system_calls(seccomp, holder)
        .map_err(|source| StartError::Seccomp { mode: seccomp.name(), source })
}

/// What the process may do, told in the log.
pub(super) fn told(settings: &Settings) -> Rights {
    match Rights::read(settings.privileges.seccomp) {
        Ok(rights) => {
            tracing::info!(
                capabilities = rights.capabilities.join(","),
                no_new_privileges = rights.no_new_privileges,
                seccomp = rights.seccomp,
                "what this process may do"
            );
            rights
        }
        Err(error) => {
            tracing::warn!(%error, "what this process may do cannot be read: /v1/status names no capability");
            Rights::default()
        }
    }
}

/// Root without CAP_DAC_OVERRIDE reads what root may read: a file that is another user's alone could be read at the start, and cannot
/// be read again.
fn look_at_files(settings: &Settings) {
    let env_file = settings.files.env_file.as_deref().filter(|file| !file.starts_with('-'));
    let named = [("config", settings.files.config.as_deref()), ("env-file", env_file)];
    let admin = &settings.admin;
    let tls = admin.tls.as_ref().map(|tls| [("admin-tls-cert", &*tls.cert), ("admin-tls-key", &*tls.key)]);
    let token = admin.token_file.as_deref().map(|file| ("admin-token-file", file));
    let all = named.iter().filter_map(|(name, file)| Some((*name, file.as_deref()?.as_ref())));
    for (name, file) in all.chain(token).chain(tls.into_iter().flatten()) {
        if let Err(error) = File::open(file) {
            tracing::warn!(
                file = %file.display(), %error,
                "-{name} cannot be read again while the daemon runs: give it to the daemon's user (chown)"
            );
        }
    }
    look_at_secrets(settings);
}

/// Warns of secrets that every user of this host can read.
pub(super) fn look_at_secrets(settings: &Settings) {
    let admin = &settings.admin;
    let secrets =
        [("admin-token-file", admin.token_file.as_deref()), ("admin-tls-key", admin.tls.as_ref().map(|tls| &*tls.key))];
    for (name, file) in secrets {
        if let Some(file) = file
            && fs::metadata(file).is_ok_and(|found| found.permissions().mode() & OTHERS_READ != 0)
        {
            tracing::warn!(file = %file.display(), "every user of this host can read -{name}: chmod o-r");
        }
    }
}
