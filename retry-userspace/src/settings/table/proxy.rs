//! Which upstream endpoints are asked for missing frames.

use std::path::PathBuf;
use std::time::Duration;

use super::retry::{Retry, retry_rows};
use crate::settings::accepts::{MILLISECOND, YEAR, any, one_of, optional, switch, time, whole};
use crate::settings::hosts::{self, HostPort};
use crate::settings::rows::{Read, Row, Rows};
use crate::settings::values;

/// Which upstream endpoints are asked for missing frames.
#[derive(Clone, Debug)]
pub struct Proxy {
    /// Ask upstream. Beacons then announce a parent.
    pub enabled: bool,
    /// Upstream endpoints that are asked before discovered ones.
    pub upstreams: Vec<HostPort>,
    /// Ask endpoints heard by beacon too.
    pub discover: bool,
    /// Which is asked first.
    pub select: ProxySelect,
    /// Where discovered endpoints are kept; none: they are forgotten.
    pub state_dir: Option<PathBuf>,
    /// How long one may take. Past it the next is asked.
    pub timeout: Duration,
    /// Most asked for one frame; 0: all.
    pub max_endpoints: u32,
    /// How long one recovery stands for all instances.
    pub dedup_window: Duration,
    /// Workers, never 0; each keeps up to 256 recoveries under way.
    pub workers: usize,
    /// Recoveries that wait, never 0. More are dropped and counted.
    pub queue: usize,
    /// How a recovery without an answer is tried again.
    pub retry: Retry,
}

/// Which upstream is asked first.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ProxySelect {
    /// As listed.
    Order,
    /// By the frame's flow.
    Hash,
    /// The fastest.
    Rtt,
}

impl Proxy {
    pub(in crate::settings) fn read(rows: &mut Rows<'_>) -> Read<Self> {
        rows.group("Recovery from upstream");
        Ok(Self {
            enabled: rows.read(Row {
                flag: "proxy-enabled",
                env: "PROXY_ENABLED",
                default: "false",
                accepts: switch(),
                meaning: "Ask upstream endpoints for frames that we have not.",
                consequence: "Needs -upstream-retry-endpoints or -proxy-discover; beacons announce a parent.",
            })?,
            upstreams: rows.read(Row {
                flag: "upstream-retry-endpoints",
                env: "UPSTREAM_RETRY_ENDPOINTS",
                default: "",
                accepts: any("host:port, comma separated", hosts::host_ports),
                meaning: "Upstream endpoints.",
                consequence: "Asked before all that are discovered. Needs -proxy-enabled.",
            })?,
            discover: rows.read(Row {
                flag: "proxy-discover",
                env: "PROXY_DISCOVER",
                default: "false",
                accepts: switch(),
                meaning: "Ask endpoints too that are heard by their beacons.",
                consequence: "They come after the ones named; one that announces another address than its beacons come from is asked only if -acl-allow or -proxied-from names it. Needs -proxy-enabled.",
            })?,
            select: rows.read(Row {
                flag: "proxy-select",
                env: "PROXY_SELECT",
                default: "order",
                accepts: one_of(&[
                    ("order", ProxySelect::Order),
                    ("hash", ProxySelect::Hash),
                    ("rtt", ProxySelect::Rtt),
                ]),
                meaning: "order: as listed. hash: by the frame's flow. rtt: the fastest.",
                consequence: "hash spreads the flows over the upstreams, and one that is twice as slow as the fastest loses its share.",
            })?,
            state_dir: rows.read(Row {
                flag: "state-dir",
                env: "STATE_DIR",
                default: "",
                accepts: optional(any("an absolute path", values::absolute_path)),
                meaning: "Directory where discovered upstreams are kept.",
                consequence: "A cold start asks them before the first beacon. Not set: they are forgotten at the end.",
            })?,
            timeout: rows.read(Row {
                flag: "proxy-timeout",
                env: "PROXY_TIMEOUT",
                default: "300ms",
                accepts: time(MILLISECOND, YEAR),
                meaning: "How long an upstream endpoint may take.",
                consequence: "Past it the next is asked. No effect without -proxy-enabled.",
            })?,
            max_endpoints: rows.read(Row {
                flag: "proxy-max-endpoints",
                env: "PROXY_MAX_ENDPOINTS",
                default: "0",
                accepts: whole(0..=u32::MAX),
                meaning: "Most upstream endpoints asked for one frame; 0: all.",
                consequence: "No effect without -proxy-enabled.",
            })?,
            dedup_window: rows.read(Row {
                flag: "proxy-dedup-window",
                env: "PROXY_DEDUP_WINDOW",
                default: "60s",
                accepts: time(MILLISECOND, YEAR),
                meaning: "How long one recovery of a frame stands for all instances.",
                consequence: "No effect without -proxy-enabled.",
            })?,
            workers: match rows.read(Row {
                flag: "proxy-workers",
                env: "PROXY_WORKERS",
                default: "4",
                accepts: whole(0..=1024),
                meaning: "Recovery workers; 0: the default.",
                consequence: "Each keeps up to 256 recoveries under way. No effect without -proxy-enabled.",
            })? {
                0 => 4,
                workers => workers,
            },
            queue: rows.read(Row {
                flag: "proxy-queue",
                env: "PROXY_QUEUE",
                default: "1024",
                accepts: whole(1..=100_000_000),
                meaning: "Recoveries that may wait.",
                consequence: "Past it they are dropped and counted. No effect without -proxy-enabled.",
            })?,
            retry: {
                rows.group("Retrying a recovery");
                retry_rows!(rows, "proxy", "PROXY", breaker: "0")
            },
        })
    }
}
