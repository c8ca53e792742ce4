//! How multicast leaves.

use crate::settings::accepts::{any, port, switch, whole};
use crate::settings::rows::{Read, Row, Rows};
use crate::settings::values;

/// How multicast leaves.
#[derive(Clone, Debug)]
pub struct Egress {
    /// Interfaces of multicast repairs, never empty, none twice. The first carries beacons.
    pub ifaces: Vec<String>,
    /// UDP port of multicast repairs.
    pub port: u16,
    /// Loop repairs back to this host: they leave through the daemon then.
    pub multicast_loop: bool,
    /// Hop limit of repairs and beacons, never 0.
    pub hop_limit: u8,
}

impl Egress {
    pub(in crate::settings) fn read(rows: &mut Rows<'_>) -> Read<Self> {
        rows.group("Egress");
        Ok(Self {
            ifaces: rows.read(Row {
                flag: "egress-iface",
                env: "EGRESS_IFACE",
                default: "eth0",
                accepts: any("1 to 16 interface names, comma separated, none twice", values::interfaces),
                meaning: "Interfaces that multicast repairs leave by.",
                consequence: "Every repair goes out of each; the first carries beacons.",
            })?,
            port: rows.read(Row {
                flag: "egress-port",
                env: "EGRESS_PORT",
                default: "9001",
                accepts: port(),
                meaning: "UDP port of multicast repairs.",
                consequence: "Listeners hear repairs only on their data port.",
            })?,
            multicast_loop: rows.read(Row {
                flag: "egress-multicast-loop",
                env: "EGRESS_MULTICAST_LOOP",
                default: "false",
                accepts: switch(),
                meaning: "Loop multicast repairs back to listeners on this host.",
                consequence: "Repairs then leave through the daemon, not through XDP: slower.",
            })?,
            hop_limit: match rows.read(Row {
                flag: "egress-hoplimit",
                env: "EGRESS_HOPLIMIT",
                default: "1",
                accepts: whole(0..=u8::MAX),
                meaning: "Hop limit of multicast repairs and beacons; 0: the default.",
                consequence: "With 1 they do not pass a router.",
            })? {
                0 => 1,
                hops => hops,
            },
        })
    }
}
