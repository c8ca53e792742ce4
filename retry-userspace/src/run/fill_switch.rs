//! Other programs that listen to the frames on this host.
//!
//! What the kernel stores reaches no socket. A listener or a proxy beside the endpoint would go without, so with `-fill auto`
//! the kernel stores only while no other program has the data port open.

use std::io;
use std::net::SocketAddrV6;
use std::sync::Arc;
use std::time::{Duration, Instant};

use retry_common::counter::Counter;

use crate::counters::UserCounters;
use crate::datapath::KernelFill;
use crate::net::bound;
use crate::settings::{FillMode, Settings};
use crate::stop_flag::StopFlag;

/// Between two looks.
const PAUSE: Duration = Duration::from_secs(1);

/// Looks every second who has which port open, until `stop`: a long table of sockets is no matter for the main task.
pub(super) fn watch(mut nack_port: NackPortWatch, mut fill: Option<FillSwitch>, stop: &StopFlag) {
    let mut next = Instant::now() + PAUSE;
    while !stop.is_asked() {
        std::thread::sleep(Duration::from_millis(100));
        if Instant::now() < next {
            continue;
        }
        nack_port.review();
        if let Some(fill) = &mut fill {
            fill.review();
        }
        next = Instant::now() + PAUSE;
    }
}

/// Switches the kernel's fill as the settings and the neighbours allow.
pub(super) struct FillSwitch {
    kernel: KernelFill,
    mode: FillMode,
    port: u16,
    on: Option<bool>,
    told_unreadable: bool,
}

impl FillSwitch {
    /// As the settings ask; off until [`FillSwitch::review`].
    pub(super) const fn new(kernel: KernelFill, settings: &Settings) -> Self {
        let (mode, port) = (settings.xdp.fill, settings.ingress.listen_port);
        Self { kernel, mode, port, on: None, told_unreadable: false }
    }

    /// Looks who has the port open, and switches.
    pub(super) fn review(&mut self) {
        let others = match others_listen(self.port) {
            Ok(others) => others,
            Err(error) => {
                if !self.told_unreadable {
                    tracing::warn!(%error, "-fill: cannot see which other programs listen on this host: taken as none");
                    self.told_unreadable = true;
                }
                false
            }
        };
        let wanted = self.mode == FillMode::Kernel || !others;
        if self.on == Some(wanted) {
            return;
        }
        if let Err(error) = self.kernel.switch(wanted) {
            tracing::error!(%error, "-fill: the kernel's fill could not be switched");
            return;
        }
        self.on = Some(wanted);
        match (wanted, others) {
            (true, false) => tracing::info!(fill = "kernel", "the kernel stores frames"),
            (true, true) => tracing::warn!(
                fill = "kernel",
                port = self.port,
                "another program on this host has the data port open: with -fill kernel it gets no frames"
            ),
            (false, _) => tracing::info!(
                fill = "daemon",
                port = self.port,
                "another program on this host has the data port open: the daemon stores frames, so that both get them"
            ),
        }
    }
}

/// True when a socket that is not ours is bound to the UDP port in our network namespace.
fn others_listen(port: u16) -> io::Result<bool> {
    Ok(!bound::by_others(port)?.is_empty())
}

/// Watches that no other program is bound to the address and port of NACKs.
pub(super) struct NackPortWatch {
    address: SocketAddrV6,
    counters: Arc<UserCounters>,
    rival: Option<bound::Bound>,
}

impl NackPortWatch {
    /// For NACKs that come to `address`.
    pub(super) const fn new(address: SocketAddrV6, counters: Arc<UserCounters>) -> Self {
        Self { address, counters, rival: None }
    }

    /// Looks who is bound there, counts, and tells of a change; for a timer.
    pub(super) fn review(&mut self) {
        // What cannot be read has been told by the fill's switch, or at the start.
        let rival = bound::rival(self.address).unwrap_or(self.rival);
        if let Some(rival) = rival {
            self.counters.one(Counter::NackPortContended);
            if self.rival != Some(rival) {
                tracing::error!(
                    address = %self.address,
                    user = rival.user,
                    inode = rival.inode,
                    "-nack-addr, -nack-port: another program is bound to the address and port of NACKs and may take them: \
                     find it with `ss -uapne` and stop it; -nack-port-shared=false keeps it out"
                );
            }
        } else if self.rival.is_some() {
            tracing::info!(address = %self.address, "no other program is bound to the address and port of NACKs any more");
        }
        self.rival = rival;
    }
}
