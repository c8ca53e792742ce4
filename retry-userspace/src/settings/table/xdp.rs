//! The program in the kernel.

use std::path::PathBuf;
use std::time::Duration;

use crate::settings::accepts::{HOUR, SECOND, TENTH, any, one_of, switch, time};
use crate::settings::rows::{Read, Row, Rows};
use crate::settings::values;

/// Where NACKs are answered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum XdpMode {
    /// Native, else off, and the reason told.
    Auto,
    /// In the driver or not at all.
    Native,
    /// In the stack.
    Skb,
    /// By the daemon's socket.
    Off,
}

impl XdpMode {
    /// Its word in `-xdp`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Native => "native",
            Self::Skb => "skb",
            Self::Off => "off",
        }
    }
}

/// Who stores frames.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FillMode {
    /// The kernel, where it answers NACKs in the driver; else the daemon.
    Auto,
    /// The kernel or not at all.
    Kernel,
    /// The daemon.
    Daemon,
}

/// The program in the kernel.
#[derive(Clone, Debug)]
pub struct Xdp {
    /// Where NACKs are answered.
    pub mode: XdpMode,
    /// Who stores frames.
    pub fill: FillMode,
    /// True when program, maps and memberships outlive the daemon, for the next one to take over.
    pub handover: bool,
    /// How long the kernel leaves to the daemon what the daemon alone can answer, after the daemon last renewed, at least 100 ms.
    pub daemon_lease: Duration,
    /// How long the kernel answers hits and stores frames without the daemon, at least 1 s. Then it passes NACKs on.
    pub bpf_lease: Duration,
    /// Where maps are pinned.
    pub bpffs: PathBuf,
    /// Another build of the kernel programs than the one inside.
    pub object: Option<PathBuf>,
}

impl Xdp {
    pub(in crate::settings) fn read(rows: &mut Rows<'_>) -> Read<Self> {
        rows.group("XDP");
        Ok(Self {
            mode: rows.read(Row {
                flag: "xdp",
                env: "XDP",
                default: "auto",
                accepts: one_of(&[
                    ("auto", XdpMode::Auto),
                    ("native", XdpMode::Native),
                    ("skb", XdpMode::Skb),
                    ("off", XdpMode::Off),
                ]),
                meaning: "Where NACKs are answered; auto: native, else off.",
                consequence: "skb: limits and MISSes in the kernel, frames by the daemon. off: all by the daemon's socket.",
            })?,
            fill: rows.read(Row {
                flag: "fill",
                env: "FILL",
                default: "auto",
                accepts: one_of(&[
                    ("auto", FillMode::Auto),
                    ("kernel", FillMode::Kernel),
                    ("daemon", FillMode::Daemon),
                ]),
                meaning: "Who stores frames; auto: kernel, where -xdp is native and no other program has -listen-port open, else daemon.",
                consequence: "The kernel stores whole, new frames with a right checksum, which then reach no socket of this host; everything else the daemon.",
            })?,
            handover: rows.read(Row {
                flag: "bpf-handover",
                env: "BPF_HANDOVER",
                default: "true",
                accepts: switch(),
                meaning: "Program, frames, counters and memberships outlive the daemon, and the next one takes them over.",
                consequence: "A restart loses no frame, and the kernel answers meanwhile. false: all of it ends with the daemon.",
            })?,
            daemon_lease: rows.read(Row {
                flag: "daemon-lease",
                env: "DAEMON_LEASE",
                default: "1s",
                accepts: time(TENTH, HOUR),
                meaning: "How long the kernel leaves NACKs to a daemon that does not renew: it renews while all of its threads make progress.",
                consequence: "After it what waits for the daemon (Redis, upstream, long frames) is a MISS at once: listeners ask the next endpoint.",
            })?,
            bpf_lease: rows.read(Row {
                flag: "bpf-lease",
                env: "BPF_LEASE",
                default: "60s",
                accepts: time(SECOND, HOUR),
                meaning: "How long the kernel answers hits and stores frames without a daemon.",
                consequence: "After it NACKs are passed on to the daemon's socket: a daemon that does not come back leaves no stale cache answering.",
            })?,
            bpffs: rows.read(Row {
                flag: "bpffs",
                env: "BPFFS",
                default: "/sys/fs/bpf/retry-endpoint",
                accepts: any("an absolute path", values::absolute_path),
                meaning: "Directory of the pinned maps on a BPF file system.",
                consequence: "bpftool finds the maps there.",
            })?,
            object: rows.read(Row {
                flag: "bpf-object",
                env: "BPF_OBJECT",
                default: "",
                accepts: any("the path of a file", values::optional_path),
                meaning: "Object file with another build of the kernel programs; not set: the one inside the binary.",
                consequence: "The kernel programs can be changed without the daemon. Maps of another layout start empty.",
            })?,
        })
    }
}
