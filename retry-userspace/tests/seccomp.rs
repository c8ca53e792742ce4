//! What the filter of system calls refuses, in processes of their own. A program by itself: a child has copies of all descriptors,
//! which tests of sockets beside this one would meet.

#![expect(clippy::panic, reason = "a test's panic is its message")]

use nix::errno::Errno;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use retry_userspace::parts::privileges::{SeccompMode, filter_system_calls};

/// Exit code of a child that has no filter.
const NO_FILTER: i32 = 100;

/// Makes `calls` in a process of its own under the filters of a mode, and returns how many of them failed with EPERM.
fn refused(mode: SeccompMode, holder: bool, calls: &[fn() -> libc::c_long]) -> i32 {
    // SAFETY: the C library makes its allocator fit for use in the child, which makes system calls and ends.
    match unsafe { fork() }.expect("a process") {
        ForkResult::Child => {
            let is_in_force = filter_system_calls(mode, holder).is_ok();
            let refused = calls.iter().filter(|call| call() == -1 && Errno::last_raw() == libc::EPERM);
            let code = if is_in_force { refused.count().try_into().unwrap_or(NO_FILTER) } else { NO_FILTER };
            // SAFETY: it ends this process, and runs nothing of the parent's.
            unsafe { libc::_exit(code) }
        }
        ForkResult::Parent { child } => match waitpid(child, None) {
            Ok(WaitStatus::Exited(_, code)) => code,
            other => panic!("{other:?}"),
        },
    }
}

/// Calls that fail for another reason where the filter lets them through: with EINVAL, EBADF or EFAULT.
const CALLS: [fn() -> libc::c_long; 4] = [
    // SAFETY: flags that are none; nothing happens.
    || unsafe { libc::syscall(libc::SYS_unshare, libc::c_long::MAX) },
    // SAFETY: no descriptor; nothing happens.
    || unsafe { libc::syscall(libc::SYS_setns, -1, 0) },
    // SAFETY: no name; nothing happens.
    || unsafe { libc::syscall(libc::SYS_execve, 0, 0, 0) },
    // SAFETY: flags that do not go together; nothing happens.
    || unsafe { libc::syscall(libc::SYS_clone, libc::CLONE_NEWUSER | libc::CLONE_FS | libc::CLONE_THREAD, 0, 0, 0, 0) },
];

#[test]
fn what_is_not_listed_is_refused() {
    assert_eq!(refused(SeccompMode::On, false, &CALLS), 4);
    assert_eq!(refused(SeccompMode::On, true, &CALLS), 3, "a holder is started by execve");
    assert_eq!(refused(SeccompMode::Log, false, &CALLS), 0);
    assert_eq!(refused(SeccompMode::Off, false, &CALLS), 0);
    // SAFETY: no descriptor; nothing happens.
    assert_eq!(refused(SeccompMode::On, false, &[|| unsafe { libc::syscall(libc::SYS_read, -1, 0, 0) }]), 0);
}
