//! Other programs that listen to the frames on this host.
//!
//! What the kernel stores reaches no socket. A listener or a proxy beside the endpoint would go without, so with `-fill auto`
//! the kernel stores only while nobody else has the data port open.

use std::collections::HashSet;
use std::{fs, io};

use crate::datapath::KernelFill;
use crate::settings::FillMode;

/// Switches the kernel's fill as the settings and the neighbours allow.
pub(super) struct FillSwitch {
    kernel: KernelFill,
    mode: FillMode,
    port: u16,
    on: Option<bool>,
    told_unreadable: bool,
}

impl FillSwitch {
    /// For frames that come to `port`; off until [`FillSwitch::review`].
    pub(super) const fn new(kernel: KernelFill, mode: FillMode, port: u16) -> Self {
        Self { kernel, mode, port, on: None, told_unreadable: false }
    }

    /// Looks who has the port open, and switches; for a timer.
    pub(super) fn review(&mut self) {
        let others = match others_listen(self.port) {
            Ok(others) => others,
            Err(error) => {
                if !self.told_unreadable {
                    tracing::warn!(%error, "-fill: cannot see who else listens on this host: taken as nobody");
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
    let bound = inodes_on(&fs::read_to_string("/proc/self/net/udp6")?, port);
    if bound.is_empty() {
        return Ok(false);
    }
    let mut ours = HashSet::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        // A descriptor may close while the directory is read.
        if let Ok(link) = fs::read_link(entry?.path())
            && let Some(inode) = link.to_str().and_then(|link| link.strip_prefix("socket:["))
        {
            ours.extend(inode.trim_end_matches(']').parse::<u64>());
        }
    }
    Ok(bound.iter().any(|inode| !ours.contains(inode)))
}

/// The inodes of the sockets in a table as `/proc/net/udp6` has it that are bound to `port`.
fn inodes_on(table: &str, port: u16) -> Vec<u64> {
    let of = |line: &str| {
        let mut fields = line.split_whitespace();
        let (_, local_port) = fields.nth(1)?.rsplit_once(':')?;
        let inode = fields.nth(7)?.parse().ok()?;
        (u16::from_str_radix(local_port, 16).ok()? == port).then_some(inode)
    };
    table.lines().skip(1).filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_found_by_their_port() {
        let table = "  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
 1178: 00000000000000000000000000000000:2329 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 56789 2 0000000000000000 0
 1179: 000080FE00000000FF005450A1B2C3FE:2454 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 123 2 0000000000000000 0
 1180: B00C05FF0000000000000000 00
";
        assert_eq!(inodes_on(table, 9_001), [56_789]);
        assert_eq!(inodes_on(table, 9_300), [123]);
        assert_eq!(inodes_on(table, 53), [0; 0]);
        assert_eq!(inodes_on("", 53), [0; 0]);
    }

    #[test]
    fn our_own_socket_is_nobody_else() {
        let socket = std::net::UdpSocket::bind("[::1]:0").expect("a port");
        let port = socket.local_addr().expect("an address").port();
        assert!(!others_listen(port).expect("readable"));
    }
}
