//! Where frames come from.

use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use retry_common::group::{self, BeefBits, Scope, ShardBits, SourceMode};

use crate::settings::accepts::{HOUR, ZERO, any, one_of, port, switch, time, whole};
use crate::settings::rows::{Read, Row, Rows};
use crate::settings::{hosts, values};

/// Where frames come from.
#[derive(Clone, Debug)]
pub struct Ingress {
    /// The fabric interface: the groups are joined on it, and XDP attaches to it.
    pub mc_iface: String,
    /// UDP port of the data plane.
    pub listen_port: u16,
    /// How far the groups reach. Part of [`Ingress::group_prefix`].
    pub scope: Scope,
    /// Whether sources are named. Part of [`Ingress::group_prefix`].
    pub source_mode: SourceMode,
    /// First two bytes of every group address, from scope and source mode.
    pub group_prefix: u16,
    /// The group id in every group address; another fabric has another one.
    pub group_id: u16,
    /// Source of repairs and beacons; none is the egress interface's own address. Frames from it are not taken for new
    /// ones.
    pub bind_source: Option<Ipv6Addr>,
    /// Bits of a TxID that choose its group.
    pub shard_bits: ShardBits,
    /// Join the subtree data group.
    pub subtree_data: bool,
    /// Bits of a TopicID that choose its group; none: the BEEF band is not joined.
    pub beef: Option<BeefBits>,
    /// Loopback socket for frames of a program on this host.
    pub tee: Option<SocketAddr>,
    /// Join the groups. Without it [`Ingress::tee`] is set, and the only source.
    pub join: bool,
    /// Threads that the groups are spread over; 0: one while that is enough.
    pub workers: usize,
    /// How often memberships are said again; 0: never.
    pub rejoin_interval: Duration,
}

impl Ingress {
    pub(in crate::settings) fn read(rows: &mut Rows<'_>) -> Read<Self> {
        rows.group("Fabric and ingress");
        let mc_iface = rows.read(Row {
            flag: "mc-iface",
            env: "MC_IFACE",
            default: "eth0",
            accepts: any("an interface name", |text| values::filled(text, "the name of an interface")),
            meaning: "Fabric interface.",
            consequence: "The groups are joined on it, and XDP attaches to it.",
        })?;
        let listen_port = rows.read(Row {
            flag: "listen-port",
            env: "LISTEN_PORT",
            default: "9001",
            accepts: port(),
            meaning: "UDP port of the multicast data plane.",
            consequence: "Frames to other ports are not seen.",
        })?;
        let scope = rows.read(Row {
            flag: "scope",
            env: "MC_SCOPE",
            default: "site",
            accepts: one_of(&[
                ("link", Scope::Link),
                ("site", Scope::Site),
                ("org", Scope::Org),
                ("global", Scope::Global),
            ]),
            meaning: "Scope of the groups.",
            consequence: "It is part of every group address: publishers, listeners and endpoint have the same.",
        })?;
        let group_id = rows.read(Row {
            flag: "mc-group-id",
            env: "MC_GROUP_ID",
            default: "0x000B",
            accepts: any("0 to 0xFFFF, hex or decimal", values::hex_or_decimal),
            meaning: "Group id in the group addresses.",
            consequence: "Like the scope, the same on the whole fabric.",
        })?;
        let source_mode = rows.read(Row {
            flag: "source-mode",
            env: "SOURCE_MODE",
            default: "asm",
            accepts: one_of(&[("asm", SourceMode::Asm), ("ssm", SourceMode::Ssm)]),
            meaning: "asm: any source. ssm: named sources, with scope site or global.",
            consequence: "It changes every group address.",
        })?;
        let group_prefix = group::prefix(scope, source_mode)
            .ok_or_else(|| rows.refusal("scope", "with -source-mode ssm, site or global is accepted"))?;
        let bind_source = rows.read(Row {
            flag: "bind-source",
            env: "BIND_SOURCE",
            default: "",
            accepts: any("an IPv6 unicast address", hosts::optional_address),
            meaning: "Address of this host that multicast repairs and beacons come from.",
            consequence: "Not set: the egress interface's own. With ssm it is left out of our own joins.",
        })?;
        let shard_bits = rows.read(Row {
            flag: "shard-bits",
            env: "SHARD_BITS",
            default: "2",
            accepts: any("1 to 12", |text| {
                let bits = values::number(text, 1..=12)?;
                ShardBits::new(bits).ok_or_else(|| "1 to 12 is accepted".to_owned())
            }),
            meaning: "Leading bits of a TxID that choose its group.",
            consequence: "2^bits groups are joined; the same on the whole fabric.",
        })?;
        let subtree_data = rows.read(Row {
            flag: "subtree-data-enabled",
            env: "SUBTREE_DATA_ENABLED",
            default: "false",
            accepts: switch(),
            meaning: "Join the group of subtree data too.",
            consequence: "Without it, NACKs for subtree data are misses.",
        })?;
        let has_beef = rows.read(Row {
            flag: "beef-enabled",
            env: "BEEF_ENABLED",
            default: "false",
            accepts: switch(),
            meaning: "Join the groups of BEEF objects too.",
            consequence: "Without it, NACKs for BEEF objects are misses.",
        })?;
        let beef_bits = rows.read(Row {
            flag: "beef-shard-bits",
            env: "BEEF_SHARD_BITS",
            default: "0",
            accepts: whole(0..=12),
            meaning: "Leading bits of a TopicID that choose its group.",
            consequence: "2^bits groups are joined with -beef-enabled; the same on the whole fabric.",
        })?;
        Ok(Self {
            mc_iface,
            listen_port,
            scope,
            source_mode,
            group_prefix,
            group_id,
            bind_source,
            shard_bits,
            subtree_data,
            beef: BeefBits::new(beef_bits).filter(|_| has_beef),
            tee: rows.read(Row {
                flag: "tee-listen",
                env: "TEE_LISTEN",
                default: "",
                accepts: any("a loopback address and port", hosts::loopback_address),
                meaning: "Where frames are taken from a program on this host, such as [::1]:9002.",
                consequence: "Frames come in without multicast.",
            })?,
            join: rows.read(Row {
                flag: "mc-join-enabled",
                env: "MC_JOIN_ENABLED",
                default: "true",
                accepts: switch(),
                meaning: "Join the multicast groups.",
                consequence: "False: frames come from -tee-listen alone, which must be set.",
            })?,
            workers: rows.read(Row {
                flag: "ingress-workers",
                env: "INGRESS_WORKERS",
                default: "0",
                accepts: whole(0..=64),
                meaning: "Threads that the groups are spread over; 0: one while that is enough.",
                consequence: "0 is one with up to 16 groups or fewer than 8 CPUs, else one for every 4 CPUs, at most 4. Never more than groups.",
            })?,
            rejoin_interval: rows.read(Row {
                flag: "mc-rejoin-interval",
                env: "MC_REJOIN_INTERVAL",
                default: "30s",
                accepts: time(ZERO, HOUR),
                meaning: "How often routers and switches are told again what is joined; 0: never.",
                consequence: "One that has forgotten a membership passes it on again within this time. Needs CAP_NET_RAW.",
            })?,
        })
    }
}
