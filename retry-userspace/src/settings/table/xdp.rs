//! The program in the kernel.

use std::path::PathBuf;
use std::time::Duration;

use crate::settings::accepts::{HOUR, SECOND, any, one_of, time};
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
    /// How long the kernel answers without the daemon, at least 1 s. Then it passes NACKs on.
    pub lease: Duration,
    /// Where maps are pinned.
    pub bpffs: PathBuf,
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
            lease: rows.read(Row {
                flag: "xdp-lease",
                env: "XDP_LEASE",
                default: "10s",
                accepts: time(SECOND, HOUR),
                meaning: "How long the kernel goes on answering after the daemon last renewed.",
                consequence: "A daemon that died leaves no stale cache answering for longer.",
            })?,
            bpffs: rows.read(Row {
                flag: "bpffs",
                env: "BPFFS",
                default: "/sys/fs/bpf/retry-endpoint",
                accepts: any("an absolute path", values::absolute_path),
                meaning: "Directory of the pinned maps on a BPF file system.",
                consequence: "bpftool finds the maps there.",
            })?,
        })
    }
}
