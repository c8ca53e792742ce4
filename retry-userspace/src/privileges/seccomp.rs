//! The system calls that the daemon, and the holder that it starts, may make (seccomp(2)): an allow-list.
//!
//! The list is by use, so that a reviewer sees what each call is for. What is not on it fails with EPERM, and the kernel says so
//! in its audit log: decision 26 has the reasons, docs/security.md how to find a refused call.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

use crate::settings::SeccompMode;

/// Files and directories: settings, pins, state, /proc, name resolution.
const FILES: &[libc::c_long] = &[
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_openat,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_fchmod,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_ftruncate,
    libc::SYS_flock,
    libc::SYS_fcntl,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_pipe2,
    libc::SYS_ioctl,
    libc::SYS_getcwd,
    libc::SYS_chdir,
    libc::SYS_memfd_create,
];

/// Memory: the frame log, the limit tables, the allocator, the dynamic loader.
const MEMORY: &[libc::c_long] = &[
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_membarrier,
];

/// Threads and the process itself. `clone` has a rule of its own.
const PROCESS: &[libc::c_long] = &[
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_getppid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_tgkill,
    libc::SYS_set_tid_address,
    libc::SYS_set_robust_list,
    libc::SYS_get_robust_list,
    libc::SYS_rseq,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_setaffinity,
    libc::SYS_getcpu,
    libc::SYS_prlimit64,
    libc::SYS_prctl,
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_getrusage,
    libc::SYS_sysinfo,
    libc::SYS_uname,
    libc::SYS_getrandom,
];

/// Signals and time.
const SIGNALS: &[libc::c_long] = &[
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
];

/// Sockets, and waiting for them.
const SOCKETS: &[libc::c_long] = &[
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_shutdown,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
];

/// The kernel program and its maps.
const KERNEL: &[libc::c_long] = &[libc::SYS_bpf];

/// Starting the holder, which keeps sockets while no daemon runs, and waiting for its end. Under a service manager that keeps
/// sockets there is none.
const HOLDER: &[libc::c_long] = &[libc::SYS_execve, libc::SYS_wait4, libc::SYS_waitid, libc::SYS_setsid];

/// The same calls as above under the names that only this architecture has.
#[cfg(target_arch = "x86_64")]
const OLDER: &[libc::c_long] = &[
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_getdents,
    libc::SYS_mkdir,
    libc::SYS_unlink,
    libc::SYS_rmdir,
    libc::SYS_rename,
    libc::SYS_dup2,
    libc::SYS_pipe,
    libc::SYS_time,
    libc::SYS_getrlimit,
    libc::SYS_setrlimit,
    libc::SYS_arch_prctl,
    libc::SYS_epoll_create,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd,
    libc::SYS_poll,
    libc::SYS_select,
];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[libc::c_long] = &[];

/// What starts a process without flags, where the architecture has it.
#[cfg(target_arch = "x86_64")]
const FORK: &[libc::c_long] = &[libc::SYS_fork, libc::SYS_vfork];
#[cfg(not(target_arch = "x86_64"))]
const FORK: &[libc::c_long] = &[];

/// Flags of `clone` that make a namespace: a user namespace is the door to most of the kernel's code.
const NAMESPACES: u64 = (libc::CLONE_NEWUSER
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP)
    .cast_unsigned() as u64;

/// Lets the process, all its threads, and what it starts make no system calls but the daemon's. `holder`: it may start programs.
///
/// # Errors
/// The kernel has no seccomp filters, or a filter that is in force already refuses another one.
pub fn install(mode: SeccompMode, holder: bool) -> io::Result<()> {
    if mode == SeccompMode::Off {
        return Ok(());
    }
    nix::sys::prctl::set_no_new_privs()?;
    let compiled = |filter: Result<BpfProgram, seccompiler::BackendError>| filter.map_err(io::Error::other);
    if mode == SeccompMode::On {
        // Before the list, which does not have seccomp(2).
        apply(&compiled(clone3_is_unknown())?, 0)?;
    }
    apply(&compiled(allow_list(mode, holder))?, libc::SECCOMP_FILTER_FLAG_LOG)
}

/// clone3(2) has its flags in memory, where no filter sees them. The C libraries take clone(2) where the kernel has no clone3.
fn clone3_is_unknown() -> Result<BpfProgram, seccompiler::BackendError> {
    let rules = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let unknown = SeccompAction::Errno(libc::ENOSYS.cast_unsigned());
    SeccompFilter::new(rules, SeccompAction::Allow, unknown, target()?)?.try_into()
}

fn allow_list(mode: SeccompMode, holder: bool) -> Result<BpfProgram, seccompiler::BackendError> {
    let mut calls = [FILES, MEMORY, PROCESS, SIGNALS, SOCKETS, KERNEL, OLDER, &[libc::SYS_clone3]].concat();
    if holder {
        calls.extend([HOLDER, FORK].concat());
    }
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = calls.into_iter().map(|call| (call, Vec::new())).collect();
    let no_namespace = SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(NAMESPACES), 0)?;
    rules.insert(libc::SYS_clone, vec![SeccompRule::new(vec![no_namespace])?]);
    let otherwise = match mode {
        SeccompMode::Log => SeccompAction::Log,
        SeccompMode::On | SeccompMode::Off => SeccompAction::Errno(libc::EPERM.cast_unsigned()),
    };
    SeccompFilter::new(rules, otherwise, SeccompAction::Allow, target()?)?.try_into()
}

fn target() -> Result<TargetArch, seccompiler::BackendError> {
    std::env::consts::ARCH.try_into()
}

/// Puts a filter in force for all threads; with `SECCOMP_FILTER_FLAG_LOG` in `more` the kernel logs what it refuses, which
/// seccompiler does not ask for.
fn apply(program: &[seccompiler::sock_filter], more: libc::c_ulong) -> io::Result<()> {
    let flags = libc::SECCOMP_FILTER_FLAG_TSYNC | more;
    let program = libc::sock_fprog {
        len: program.len().try_into().map_err(io::Error::other)?,
        // The kernel copies it.
        filter: program.as_ptr().cast_mut().cast(),
    };
    // SAFETY: the filter outlives the call, and its length is that of the slice; both crates have the kernel's layout.
    let applied = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    match applied {
        0 => Ok(()),
        thread if thread > 0 => Err(io::Error::other(format!("thread {thread} has another filter"))),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_call_is_listed_twice() {
        let mut calls = [FILES, MEMORY, PROCESS, SIGNALS, SOCKETS, KERNEL, OLDER, HOLDER, FORK].concat();
        calls.sort_unstable();
        let listed = calls.len();
        calls.dedup();
        assert_eq!(calls.len(), listed);
    }

    /// What a process that was taken over would ask for first.
    #[test]
    fn the_list_has_no_call_that_the_daemon_does_not_make() {
        let calls = [FILES, MEMORY, PROCESS, SIGNALS, SOCKETS, KERNEL, OLDER].concat();
        for other in [
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_ptrace,
            libc::SYS_process_vm_writev,
            libc::SYS_mount,
            libc::SYS_setns,
            libc::SYS_unshare,
            libc::SYS_init_module,
            libc::SYS_finit_module,
            libc::SYS_keyctl,
            libc::SYS_perf_event_open,
            libc::SYS_io_uring_setup,
            libc::SYS_userfaultfd,
            libc::SYS_setuid,
            libc::SYS_chroot,
        ] {
            assert!(!calls.contains(&other), "{other}");
        }
    }

    #[test]
    fn both_lists_compile() {
        for holder in [false, true] {
            for mode in [SeccompMode::On, SeccompMode::Log] {
                assert!(!allow_list(mode, holder).expect("a program").is_empty());
            }
        }
        assert!(!clone3_is_unknown().expect("a program").is_empty());
    }
}
