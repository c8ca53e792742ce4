//! What the process may do.

use crate::settings::accepts::one_of;
use crate::settings::rows::{Read, Row, Rows};

/// What becomes of a system call that the daemon does not use.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SeccompMode {
    /// The kernel refuses it.
    On,
    /// The kernel logs it.
    Log,
    /// Nothing: there is no filter.
    Off,
}

impl SeccompMode {
    /// Its word in `-seccomp`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::On => "on",
            Self::Log => "log",
            Self::Off => "off",
        }
    }
}

/// What the process may do.
#[derive(Clone, Debug)]
pub struct Privileges {
    /// What becomes of system calls that the daemon does not use.
    pub seccomp: SeccompMode,
}

impl Privileges {
    pub(in crate::settings) fn read(rows: &mut Rows<'_>) -> Read<Self> {
        rows.group("Privileges");
        Ok(Self {
            seccomp: rows.read(Row {
                flag: "seccomp",
                env: "SECCOMP",
                default: "on",
                accepts: one_of(&[("on", SeccompMode::On), ("log", SeccompMode::Log), ("off", SeccompMode::Off)]),
                meaning: "What becomes of a system call that the daemon does not use.",
                consequence: "on: it is refused (EPERM), and stands in the kernel's audit log. log: it is made, and stands there. off: it is made.",
            })?,
        })
    }
}
