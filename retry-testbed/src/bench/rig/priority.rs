//! One weight for all that is measured, above the rest of the machine.
//!
//! Linux groups the threads of a session (autogroup), and a NAPI thread, which is the kernel's, belongs to none: by
//! default it weighs as much as all threads of this bench together, generator and server alike. Here a NAPI thread weighs
//! about what the group does on one of the two cores. Both stand above ordinary programs, so that one of them that wants
//! a core does not stop a 256-packet queue from being emptied and pass for a limit of what is measured.

use std::path::Path;

use anyhow::{Context, Result};

/// Nice level of NAPI threads.
const NAPI: i32 = -10;
/// Of the group: three levels are a factor of two, for the group has two cores to share its weight among.
const GROUP: i32 = -13;

const AUTOGROUP: &str = "/proc/self/autogroup";

/// Gives the session its weight as long as this lives.
#[derive(Debug)]
pub(crate) struct Raised {
    before: Option<String>,
}

impl Raised {
    /// Raises the session of this process. Without autogroups its threads are raised one by one, by [`raise`].
    pub(crate) fn new() -> Result<Self> {
        if !Path::new(AUTOGROUP).exists() {
            raise(0)?;
            return Ok(Self { before: None });
        }
        let text = std::fs::read_to_string(AUTOGROUP).context(AUTOGROUP)?;
        let before = text.split_whitespace().last().unwrap_or("0").to_owned();
        std::fs::write(AUTOGROUP, GROUP.to_string()).context(AUTOGROUP)?;
        Ok(Self { before: Some(before) })
    }
}

impl Drop for Raised {
    fn drop(&mut self) {
        if let Some(before) = &self.before
            && let Err(error) = std::fs::write(AUTOGROUP, before)
        {
            eprintln!("the autogroup keeps nice level {GROUP} (was {before}): {error}");
        }
    }
}

/// Raises one thread; 0 is this process's main thread. Threads that it starts later inherit that.
pub(super) fn raise(thread: i32) -> Result<()> {
    let id = libc::id_t::try_from(thread)?;
    // SAFETY: the call takes integers only.
    let done = unsafe { libc::setpriority(libc::PRIO_PROCESS, id, NAPI) };
    nix::errno::Errno::result(done).with_context(|| format!("priority of thread {thread}"))?;
    Ok(())
}
