//! The other programs that the settings name: Redis and upstream endpoints.

use std::time::Duration;

use super::finding::Finding;
use crate::recovery::probe::{probe, resolve};
use crate::settings::{Backend, HostPort, Settings};
use crate::store;

/// NACKs sent to each upstream endpoint.
const PROBES: u32 = 3;
/// Time between two of them.
const BETWEEN: Duration = Duration::from_millis(50);

/// Asks each of them.
pub(super) async fn look(settings: &Settings) -> Vec<Finding> {
    let mut findings = vec![redis(settings).await];
    if settings.proxy.enabled {
        let tasks: Vec<_> = settings
            .proxy
            .upstreams
            .iter()
            .cloned()
            .map(|upstream| tokio::task::spawn_blocking(move || ask(&upstream)))
            .collect();
        for task in tasks {
            findings.extend(task.await);
        }
        if settings.proxy.upstreams.is_empty() {
            findings.push(Finding::unknown(
                "upstream",
                "none is named: those of -proxy-discover are known once beacons are heard",
                "look at /v1/cluster/members of the daemon that runs",
            ));
        }
    }
    findings
}

async fn redis(settings: &Settings) -> Finding {
    const NAME: &str = "redis";
    let Some(config) = store::Config::from(settings) else {
        return Finding::green(NAME, "not used (-redis-addr is not set)");
    };
    match store::reach(&config).await {
        Ok(address) => Finding::green(NAME, format!("{address} answers")),
        Err(error) => {
            let costs = if settings.cache.backend == Backend::Redis { "frames and repairs" } else { "repairs" };
            Finding::yellow(
                NAME,
                format!("{error}: the daemon works without it, and instances share no {costs}"),
                "start it, or correct -redis-addr and -redis-tls-*",
            )
            .see("Redis is dead or refuses us")
        }
    }
}

fn ask(upstream: &HostPort) -> Finding {
    const NAME: &str = "upstream";
    let HostPort { host, port } = upstream;
    let text = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let outcome = resolve(&text).and_then(|address| probe(address, PROBES, BETWEEN, None));
    match outcome.map(|report| report.verdict()) {
        Ok((true, _)) => Finding::green(NAME, format!("{text} answers")),
        Ok((false, verdict)) => Finding::yellow(
            NAME,
            format!("{text}: {verdict}"),
            "see the table of the section: what misses here is not recovered from there",
        )
        .see("An upstream is lost"),
        Err(error) => {
            Finding::yellow(NAME, format!("{text}: {error}"), "correct -upstream-retry-endpoints, or the name server")
                .see("An upstream is lost")
        }
    }
}
