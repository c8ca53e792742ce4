//! Joins of (source, group) pairs that come and go (RFC 4607), spread over as many sockets as the kernel's limits ask for.
//!
//! A row of sockets holds the same sources, and each group on exactly one of its sockets; a source is in one row. So a
//! datagram arrives exactly once, whatever else comes and goes. A row takes sources until the kernel has no room:
//! `net.ipv6.mld_max_msf` sources of a group a socket, `net.core.optmem_max` bytes of joins a socket. Few rows matter: for
//! each datagram the kernel walks the joins of every socket on the port.

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::net::Ipv6Addr;
use std::ops::Range;
use std::sync::Arc;

use socket2::Socket;

use super::joins::{self, Delivery, JoinError};
use crate::net::interface::name_of;
use crate::net::options;

/// The (source, group) pairs joined on one interface and UDP port. Dropping it leaves them, once no other handle holds a socket.
#[derive(Debug)]
pub(crate) struct SourceJoins {
    delivery: Delivery,
    interface: u32,
    port: u16,
    groups: Vec<Ipv6Addr>,
    rows: Vec<Row>,
}

/// Sockets that hold the same sources.
#[derive(Debug)]
struct Row {
    sources: BTreeSet<Ipv6Addr>,
    cells: Vec<Cell>,
    /// One more source was refused since the last one left.
    is_full: bool,
}

/// A socket, and the groups that it holds by their places in [`SourceJoins::groups`].
#[derive(Debug)]
struct Cell {
    socket: Arc<Socket>,
    groups: Range<usize>,
}

/// A join that the kernel refused.
struct Refused {
    /// Place of the group.
    at: usize,
    why: io::Error,
}

impl SourceJoins {
    /// No source yet: sockets are opened as sources come.
    #[must_use]
    pub(crate) fn new(delivery: Delivery, interface: u32, port: u16, groups: &[Ipv6Addr]) -> Self {
        // Joined on two sockets, a group's datagrams would arrive twice.
        let mut seen = HashSet::with_capacity(groups.len());
        let groups = groups.iter().copied().filter(|group| seen.insert(*group)).collect();
        Self { delivery, interface, port, groups, rows: Vec::new() }
    }

    /// Joins every group from `source`; nothing to do when it is joined.
    ///
    /// # Errors
    /// [`JoinError`]; then `source` is not joined from any group, and the others are as they were.
    pub(crate) fn join(&mut self, source: Ipv6Addr) -> Result<(), JoinError> {
        if self.groups.is_empty() || self.contains(&source) {
            return Ok(());
        }
        for row in self.rows.iter_mut().filter(|row| !row.is_full) {
            match row.join(self.interface, &self.groups, source) {
                Ok(()) => return Ok(()),
                Err(refused) if joins::has_no_room(&refused.why) => row.is_full = true,
                Err(refused) => return Err(self.error(source, refused)),
            }
        }
        let row = self.open_row(source)?;
        self.rows.push(row);
        Ok(())
    }

    /// Leaves every group from `source`. Its sockets are given up when no other source uses them.
    pub(crate) fn leave(&mut self, source: Ipv6Addr) {
        let Some(at) = self.rows.iter().position(|row| row.sources.contains(&source)) else { return };
        if let Some(row) = self.rows.get_mut(at).filter(|row| row.sources.len() > 1) {
            row.leave(self.interface, &self.groups, source);
        } else {
            self.rows.remove(at);
        }
    }

    /// Leaves every group from every source, on sockets that others may hold.
    pub(super) fn leave_all(&self) {
        for row in &self.rows {
            for source in &row.sources {
                for cell in &row.cells {
                    cell.leave(self.interface, &self.groups, *source, cell.groups.end);
                }
            }
        }
    }

    /// True when `source` is joined.
    #[must_use]
    pub(crate) fn contains(&self, source: &Ipv6Addr) -> bool {
        self.rows.iter().any(|row| row.sources.contains(source))
    }

    /// The sources joined.
    pub(crate) fn sources(&self) -> impl Iterator<Item = Ipv6Addr> {
        self.rows.iter().flat_map(|row| row.sources.iter().copied())
    }

    /// The sockets. A socket that is there before and after a join or leave is the same.
    pub(crate) fn sockets(&self) -> impl Iterator<Item = &Arc<Socket>> {
        self.rows.iter().flat_map(|row| row.cells.iter().map(|cell| &cell.socket))
    }

    /// Fresh sockets for a first source, each as full of groups as it gets.
    fn open_row(&self, source: Ipv6Addr) -> Result<Row, JoinError> {
        let mut cells: Vec<Cell> = Vec::new();
        let mut at = 0;
        while at < self.groups.len() {
            let socket = joins::open_socket(self.delivery, self.interface, self.port)
                .map_err(|error| JoinError::no_socket(self.port, error))?;
            let mut cell = Cell { socket: Arc::new(socket), groups: at..at };
            match cell.extend(self.interface, &self.groups, source) {
                Ok(()) => {}
                Err(refused) if joins::has_no_room(&refused.why) && refused.at > at => {}
                Err(refused) => return Err(self.error(source, refused)),
            }
            at = cell.groups.end;
            cells.push(cell);
        }
        Ok(Row { sources: BTreeSet::from([source]), cells, is_full: false })
    }

    fn error(&self, source: Ipv6Addr, Refused { at, why }: Refused) -> JoinError {
        let interface = name_of(self.interface);
        if joins::has_no_room(&why) {
            return JoinError::NoRoom {
                joined: at,
                wanted: self.groups.len(),
                interface,
                optmem_max: joins::optmem_max(),
            };
        }
        let group = self.groups.get(at).copied().unwrap_or(Ipv6Addr::UNSPECIFIED);
        JoinError::Source { source_address: source, group, interface, source: why }
    }
}

impl Row {
    /// Joins one more source on every socket, or on none.
    fn join(&mut self, interface: u32, groups: &[Ipv6Addr], source: Ipv6Addr) -> Result<(), Refused> {
        for at in 0..self.cells.len() {
            if let Err(refused) = self.cells[at].join(interface, groups, source) {
                for cell in &self.cells[..at] {
                    cell.leave(interface, groups, source, cell.groups.end);
                }
                return Err(refused);
            }
        }
        self.sources.insert(source);
        Ok(())
    }

    fn leave(&mut self, interface: u32, groups: &[Ipv6Addr], source: Ipv6Addr) {
        for cell in &self.cells {
            cell.leave(interface, groups, source, cell.groups.end);
        }
        self.sources.remove(&source);
        self.is_full = false;
    }
}

impl Cell {
    /// Joins group after group from the first source until the end, or until one is refused.
    fn extend(&mut self, interface: u32, groups: &[Ipv6Addr], source: Ipv6Addr) -> Result<(), Refused> {
        for (at, group) in groups.iter().enumerate().skip(self.groups.start) {
            options::join_source(&self.socket, interface, *group, source).map_err(|why| Refused { at, why })?;
            self.groups.end = at + 1;
        }
        Ok(())
    }

    /// Joins this socket's groups from one more source, or none of them.
    fn join(&self, interface: u32, groups: &[Ipv6Addr], source: Ipv6Addr) -> Result<(), Refused> {
        for at in self.groups.clone() {
            if let Err(why) = options::join_source(&self.socket, interface, groups[at], source) {
                self.leave(interface, groups, source, at);
                return Err(Refused { at, why });
            }
        }
        Ok(())
    }

    /// Leaves this socket's groups before the place `end`.
    fn leave(&self, interface: u32, groups: &[Ipv6Addr], source: Ipv6Addr, end: usize) {
        for group in &groups[self.groups.start..end] {
            // The kernel knows each of these pairs; without the interface there is nothing left to leave.
            if let Err(error) = options::leave_source(&self.socket, interface, *group, source) {
                tracing::debug!(%source, %group, %error, "a source was not left");
            }
        }
    }
}

#[cfg(test)]
mod tests;
