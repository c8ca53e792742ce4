//! What the process gives up before its first thread: capabilities, and system calls that it does not use.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use caps::Capability;

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
    let files = needed_for_files(settings).unwrap_or_else(|error| {
        tracing::warn!(%error, "which files need capabilities cannot be found out: those that the daemon's user may not read fail later");
        Vec::new()
    });
    for (capability, name) in &files {
        tracing::warn!(%capability, "kept because -{name} is another user's: give it to the daemon's user (chown)");
    }
    let files: Vec<Capability> = files.into_iter().map(|(capability, _)| capability).collect();
    if let Err(error) = privileges::give_up_unused(settings, &files) {
        tracing::warn!(%error, "capabilities that are not needed are kept: the kernel does not take them back");
    }
    look_at_secrets(settings);
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

/// Files that are read, now or again later, with the names of their settings.
fn files(settings: &Settings) -> Vec<(&'static str, &Path)> {
    let env_file = settings.files.env_file.as_deref().filter(|file| !file.starts_with('-'));
    let (admin, redis, tls) = (&settings.admin, &settings.redis, settings.admin.tls.as_ref());
    let client = redis.tls_client.as_ref();
    let named = [
        ("config", settings.files.config.as_deref().map(Path::new)),
        ("env-file", env_file.map(Path::new)),
        ("acl-file", settings.acl.file.as_deref()),
        ("admin-token-file", admin.token_file.as_deref()),
        ("admin-tls-cert", tls.map(|tls| &*tls.cert)),
        ("admin-tls-key", tls.map(|tls| &*tls.key)),
        ("admin-tls-client-ca", tls.and_then(|tls| tls.client_ca.as_deref())),
        ("redis-tls-ca", redis.tls_ca.as_deref()),
        ("redis-tls-cert", client.map(|(cert, _)| &**cert)),
        ("redis-tls-key", client.map(|(_, key)| &**key)),
    ];
    named.into_iter().filter_map(|(name, file)| Some((name, file?))).collect()
}

/// Capabilities without which root could not use what the settings name: files that are another user's alone. To be called before
/// threads are started.
///
/// # Errors
/// The kernel does not tell, or does not give back, what the calling thread may do.
fn needed_for_files(settings: &Settings) -> io::Result<Vec<(Capability, &'static str)>> {
    privileges::without_rights_to_files(|| {
        let mut needed = Vec::new();
        for (name, file) in files(settings) {
            let error = File::open(file).err();
            if error.is_some_and(|error| error.kind() == io::ErrorKind::PermissionDenied) {
                needed.push((Capability::CAP_DAC_READ_SEARCH, name));
            }
        }
        if let Some(directory) = &settings.proxy.state_dir
            && may_not_write(directory)
        {
            needed.push((Capability::CAP_DAC_OVERRIDE, "state-dir"));
        }
        needed
    })
}

/// True when no file can be made in a directory because it is another user's.
fn may_not_write(directory: &Path) -> bool {
    // access(2) would ask for the real user's rights.
    let probe = directory.join(format!(".writable-{}", std::process::id()));
    match File::create_new(&probe) {
        Ok(_) => {
            let _ = fs::remove_file(&probe);
            false
        }
        Err(error) => error.kind() == io::ErrorKind::PermissionDenied,
    }
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
