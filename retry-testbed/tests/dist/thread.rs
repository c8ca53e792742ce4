//! One thread of another process, stopped while the others go on.

use std::fs;

use retry_testbed::net::netns::Netns;

/// A thread that a tracer, this thread, has stopped.
pub(crate) struct Stopped {
    thread: libc::pid_t,
}

impl Stopped {
    /// Stops the thread of this name of the daemon in this network namespace.
    pub(crate) fn in_namespace(ns: &Netns, name: &str) -> Self {
        let namespace = format!("net:[{}]", ns.inode().expect("an inode"));
        let ours = |pid: &libc::pid_t| {
            let is_daemon =
                fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm == "retry-endpoint\n");
            is_daemon
                && fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|link| link.as_os_str() == namespace.as_str())
        };
        let daemon = numbers("/proc").into_iter().find(ours).expect("a daemon");
        let tasks = format!("/proc/{daemon}/task");
        let is_named = |thread: &libc::pid_t| {
            fs::read_to_string(format!("{tasks}/{thread}/comm")).is_ok_and(|comm| comm.trim_end() == name)
        };
        let thread = numbers(&tasks).into_iter().find(is_named).expect("a thread");
        for request in [libc::PTRACE_SEIZE, libc::PTRACE_INTERRUPT] {
            // SAFETY: both requests take numbers only and touch no memory of this process.
            let result = unsafe { libc::ptrace(request, thread, 0, 0) };
            assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
        }
        Self { thread }
    }

    /// Takes notice of the thread's end, without which its process does not end.
    pub(crate) fn reap(&self) {
        // SAFETY: the status is not asked for, and nothing else is written.
        unsafe { libc::waitpid(self.thread, std::ptr::null_mut(), libc::__WALL | libc::WNOHANG) };
    }
}

/// The names of a directory that are numbers.
fn numbers(directory: &str) -> Vec<libc::pid_t> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}
