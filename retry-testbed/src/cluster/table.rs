//! Who is where, for people and for programs.

use std::{fmt::Write as _, io::Write as _};

use anyhow::Result;
use retry_testbed::daemon;
use serde::Serialize;

use super::{ADMIN, ENDPOINTS, STORES, Site, smoke::Step};
use crate::table::{Column, figures, lines, words};

/// An endpoint. Metrics and management API are reached from inside its namespace.
#[derive(Debug, Serialize)]
struct Endpoint {
    name: &'static str,
    namespace: String,
    pid: u32,
    nack: String,
    metrics: &'static str,
    management: &'static str,
}

/// A node of the Redis Cluster.
#[derive(Debug, Serialize)]
struct Store {
    name: &'static str,
    namespace: String,
    pid: u32,
    address: String,
}

/// All of them, as they were at the start.
#[derive(Debug, Serialize)]
pub(super) struct Table {
    endpoints: Vec<Endpoint>,
    redis: Vec<Store>,
}

impl Table {
    pub(super) fn new(site: &Site<'_>) -> Result<Self> {
        let mut endpoints = Vec::new();
        for (name, daemon) in ENDPOINTS.into_iter().zip(&site.endpoints) {
            let host = site.fabric.host(name)?;
            endpoints.push(Endpoint {
                name,
                namespace: host.ns.name().to_owned(),
                pid: daemon.pid(),
                nack: host.nack_address().to_string(),
                metrics: daemon::METRICS,
                management: ADMIN,
            });
        }
        let store = |(name, node): (_, &retry_testbed::peers::redis::Server<'_>)| Store {
            name,
            namespace: node.host().ns.name().to_owned(),
            pid: node.pid(),
            address: node.address().to_string(),
        };
        let redis = STORES.into_iter().zip(site.redis.nodes()).map(store).collect();
        Ok(Self { endpoints, redis })
    }

    /// A line for each, and what to do with them.
    pub(super) fn words(&self) -> String {
        const COLUMNS: [Column; 5] =
            [words("host", 0), words("namespace", 0), figures("pid", 0), words("serves", 0), words("at", 0)];
        let endpoints = self.endpoints.iter().map(|Endpoint { name, namespace, pid, nack, .. }| {
            [(*name).to_owned(), namespace.clone(), pid.to_string(), "NACKs".to_owned(), nack.clone()]
        });
        let stores = self.redis.iter().map(|Store { name, namespace, pid, address }| {
            [(*name).to_owned(), namespace.clone(), pid.to_string(), "Redis".to_owned(), address.clone()]
        });
        let mut text = lines(&COLUMNS, endpoints.chain(stores)).join("\n");
        text.push('\n');
        if let (Some(endpoint), Some(store)) = (self.endpoints.first(), self.redis.first()) {
            let (inside, other) = (&endpoint.namespace, &store.namespace);
            let metrics = endpoint.metrics;
            // Writing to a string does not fail.
            let _ = write!(
                text,
                "Metrics are at {metrics} and the management API at {ADMIN} inside each endpoint's namespace:\n  \
                 ip netns exec {inside} curl -gsS http://{metrics}/metrics\n  \
                 ip netns exec {inside} curl -gsS http://{ADMIN}/v1/cluster/members\n\
                 To kill a node of Redis, to stop it, to cut it off:\n  \
                 kill -KILL {pid}    kill -STOP {pid}    ip -n {other} link set eth0 down",
                pid = store.pid
            );
        }
        text
    }

    /// One JSON object on stdout.
    pub(super) fn print_json(&self, steps: &[Step]) -> Result<()> {
        #[derive(Serialize)]
        struct Object<'a> {
            #[serde(flatten)]
            table: &'a Table,
            steps: &'a [Step],
        }
        let text = serde_json::to_string(&Object { table: self, steps })?;
        writeln!(std::io::stdout().lock(), "{text}")?;
        Ok(())
    }
}
