//! How NACKs are taken.

use std::net::Ipv6Addr;
use std::num::NonZeroUsize;

use crate::settings::accepts::{any, port, switch, whole};
use crate::settings::hosts;
use crate::settings::rows::{Read, Row, Rows};

/// How NACKs are taken.
#[derive(Clone, Debug)]
pub struct Nack {
    /// UDP port of NACKs.
    pub port: u16,
    /// Address of NACKs, which beacons announce; none is the first global unicast of the first egress interface.
    pub addr: Option<Ipv6Addr>,
    /// Other programs on this host may bind the NACK port after the endpoint.
    pub port_shared: bool,
    /// Threads of the NACK socket, never 0.
    pub workers: usize,
    /// Send no ACKs.
    pub suppress_ack: bool,
    /// Send no MISSes.
    pub suppress_miss: bool,
}

impl Nack {
    pub(in crate::settings) fn read(rows: &mut Rows<'_>) -> Read<Self> {
        rows.group("NACKs");
        Ok(Self {
            port: rows.read(Row {
                flag: "nack-port",
                env: "NACK_PORT",
                default: "9300",
                accepts: port(),
                meaning: "UDP port of NACKs.",
                consequence: "Beacons announce it, and answers come from it.",
            })?,
            addr: rows.read(Row {
                flag: "nack-addr",
                env: "NACK_ADDR",
                default: "",
                accepts: any("an IPv6 unicast address", hosts::optional_address),
                meaning: "Address of NACKs.",
                consequence: "Beacons announce it. Not set: the first global unicast address of the first egress interface.",
            })?,
            port_shared: rows.read(Row {
                flag: "nack-port-shared",
                env: "NACK_PORT_SHARED",
                default: "false",
                accepts: switch(),
                meaning: "Let other programs on this host bind the NACK port after this one.",
                consequence: "A listener that starts later can hear beacons there; any user of the host can then take NACKs from the socket.",
            })?,
            workers: match rows.read(Row {
                flag: "nack-workers",
                env: "NACK_WORKERS",
                default: "0",
                accepts: whole(0..=1024),
                meaning: "Threads that serve the NACK socket; 0: one for each CPU.",
                consequence: "They serve what XDP leaves to the daemon.",
            })? {
                0 => std::thread::available_parallelism().map_or(1, NonZeroUsize::get),
                workers => workers,
            },
            suppress_ack: rows.read(Row {
                flag: "suppress-ack",
                env: "SUPPRESS_ACK",
                default: "false",
                accepts: switch(),
                meaning: "Send no ACKs.",
                consequence: "Hits are answered with the frame alone.",
            })?,
            suppress_miss: rows.read(Row {
                flag: "suppress-miss",
                env: "SUPPRESS_MISS",
                default: "false",
                accepts: switch(),
                meaning: "Send no MISSes.",
                consequence: "Listeners wait for their timeout before they ask the next endpoint.",
            })?,
        })
    }
}
