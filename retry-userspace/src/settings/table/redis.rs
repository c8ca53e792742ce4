//! How Redis is reached.

use std::path::PathBuf;
use std::time::Duration;

use super::retry::{Retry, retry_rows};
use crate::settings::accepts::{Accepts, MILLISECOND, YEAR, any, time};
use crate::settings::hosts::{self, RedisNode};
use crate::settings::rows::{Read, Row, Rows};
use crate::settings::values;

/// How Redis is reached.
#[derive(Clone, Debug)]
pub struct Redis {
    /// One server, the nodes of a cluster, or sentinels; none: no Redis. With
    /// `Backend::Memory` for dedup only.
    pub nodes: Vec<RedisNode>,
    /// Longest time to connect. Past it the cache goes on without.
    pub dial_timeout: Duration,
    /// Longest time of one operation. Past it the operation is a miss.
    pub op_timeout: Duration,
    /// PEM file of authorities; none: the system's. Needs `rediss://`.
    pub tls_ca: Option<PathBuf>,
    /// PEM files of our certificate (`redis-tls-cert`) and its key (`redis-tls-key`).
    pub tls_client: Option<(PathBuf, PathBuf)>,
    /// How failures are tried again.
    pub retry: Retry,
}

impl Redis {
    pub(in crate::settings) fn read(rows: &mut Rows<'_>) -> Read<Self> {
        rows.group("Redis");
        let nodes = rows.read(Row {
            flag: "redis-addr",
            env: "REDIS_ADDR",
            default: "",
            accepts: any(
                "host:port, redis:// or rediss:// (TLS), a comma list of a Redis Cluster, or redis+sentinel://hosts/name",
                hosts::redis_nodes,
            ),
            meaning: "Where Redis is.",
            consequence: "With -cache-backend memory it serves dedup between instances alone.",
        })?;
        let dial_timeout = rows.read(Row {
            flag: "cache-dial-timeout",
            env: "CACHE_DIAL_TIMEOUT",
            default: "1s",
            accepts: time(MILLISECOND, YEAR),
            meaning: "Longest time to connect to Redis.",
            consequence: "Past it the cache goes on without. No effect without -redis-addr.",
        })?;
        let op_timeout = rows.read(Row {
            flag: "cache-op-timeout",
            env: "CACHE_OP_TIMEOUT",
            default: "1s",
            accepts: time(MILLISECOND, YEAR),
            meaning: "Longest time for one Redis operation.",
            consequence: "Past it the operation is a miss: no NACK waits for it. No effect without -redis-addr.",
        })?;
        let tls_ca = rows.read(Row {
            flag: "redis-tls-ca",
            env: "REDIS_TLS_CA",
            default: "",
            accepts: file(),
            meaning: "File of certificate authorities (PEM) that vouch for Redis.",
            consequence: "Not set: the system's. Needs rediss:// in -redis-addr.",
        })?;
        let certificate = rows.read(Row {
            flag: "redis-tls-cert",
            env: "REDIS_TLS_CERT",
            default: "",
            accepts: file(),
            meaning: "File of our client certificate (PEM).",
            consequence: "For servers that ask for one; needs -redis-tls-key.",
        })?;
        let key = rows.read(Row {
            flag: "redis-tls-key",
            env: "REDIS_TLS_KEY",
            default: "",
            accepts: file(),
            meaning: "File of its private key (PEM).",
            consequence: "Needs -redis-tls-cert.",
        })?;
        let tls_client = match (certificate, key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            (Some(_), None) => {
                return Err(rows.refusal("redis-tls-key", "-redis-tls-cert needs it: a file is accepted"));
            }
            (None, Some(_)) => {
                return Err(rows.refusal("redis-tls-cert", "-redis-tls-key needs it: a file is accepted"));
            }
        };
        rows.group("Retrying Redis");
        let retry = retry_rows!(rows, "redis", "REDIS", breaker: "5");
        Ok(Self { nodes, dial_timeout, op_timeout, tls_ca, tls_client, retry })
    }
}

fn file() -> Accepts<Option<PathBuf>> {
    any("the path of a file", values::optional_path)
}
