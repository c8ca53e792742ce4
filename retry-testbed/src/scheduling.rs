//! Which threads run before others, where hosts share cores that would each have their own.

use anyhow::{Context as _, Result};

/// Lets a thread run before all ordinary ones, or as an ordinary one again; 0 is the calling thread.
///
/// For a listener and its NAPI, which stand for a host of their own, and for the server's NAPI while a cache is filled without loss:
/// each would otherwise wait for a time slice of the tasks that share its core.
///
/// # Errors
/// Not root.
pub fn urgent(thread: i32, on: bool) -> Result<()> {
    if on { schedule(thread, libc::SCHED_FIFO, 10) } else { schedule(thread, libc::SCHED_OTHER, 0) }
}

/// Puts a thread under a policy (sched(7)); 0 is the calling thread.
///
/// # Errors
/// Not root, or no such thread.
pub fn schedule(thread: i32, policy: i32, priority: i32) -> Result<()> {
    let parameters = libc::sched_param { sched_priority: priority };
    // SAFETY: the call reads one initialised structure.
    let done = unsafe { libc::sched_setscheduler(thread, policy, &raw const parameters) };
    nix::errno::Errno::result(done).with_context(|| format!("scheduling of thread {thread}"))?;
    Ok(())
}
