//! What keeps the kernel side away.

/// Why there is no kernel side. Each line says what to do.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// The start was given up while the kernel side was made.
    #[error("the start was given up")]
    GivenUp,
    /// No object embedded.
    #[error("this binary was built without its kernel program: build it with `cargo xtask build`")]
    NoObject,
    /// The object file cannot be read.
    #[error("-bpf-object {path}: {why}: name a file that `cargo xtask build-ebpf` has made, or leave the setting out")]
    Object {
        /// The file.
        path: String,
        /// The system's words.
        why: String,
    },
    /// The directory of pins is not on bpffs.
    #[error(
        "-bpffs {path}: no BPF file system there ({why}): mount one with `mount -t bpf bpffs /sys/fs/bpf`, or name another directory"
    )]
    NoBpffs {
        /// The directory.
        path: String,
        /// What was found.
        why: String,
    },
    /// Another user could change what is pinned.
    #[error("-bpffs {path}: {directory} {why}: {advice}")]
    Directory {
        /// The setting.
        path: String,
        /// The directory that is refused, on the way to it or below it.
        directory: String,
        /// Why it is refused.
        why: String,
        /// What to do.
        advice: &'static str,
    },
    /// Another daemon serves this interface.
    #[error("another daemon serves {interface} in this network namespace: it holds {directory}")]
    Locked {
        /// The directory that it holds.
        directory: String,
        /// The interface.
        interface: String,
    },
    /// A pin could not be made.
    #[error(
        "cannot pin at {path}: {why} (run as root, or name a -bpffs directory on a BPF file system that this user may write)"
    )]
    Pin {
        /// The path.
        path: String,
        /// The system's words.
        why: String,
    },
    /// The kernel refused the object.
    #[error(
        "the kernel refused the program: {0} (it needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON, or root, and Linux 6.1 or later)"
    )]
    Load(String),
    /// A map is missing or has another type.
    #[error("the kernel program has no usable map {0}")]
    Map(&'static str),
    /// A map could not be filled or mapped.
    #[error("map {map}: {why}")]
    Fill {
        /// Its name.
        map: &'static str,
        /// The system's words.
        why: String,
    },
    /// An interface refused the program.
    #[error("{interface} does not take the program in {mode} mode: {why}")]
    Attach {
        /// The interface.
        interface: String,
        /// The mode.
        mode: &'static str,
        /// What the system said and what to do.
        why: String,
    },
}
