//! HTTP on `-metrics-addr`: metrics, health, readiness, log level. Reads, and decides nothing.

pub mod manage;
mod metrics;
pub mod samples;

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{Query, State};
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use axum::{Json, Router};
use retry_common::abi::Sent;
use retry_common::counter::Counters;
use serde::Deserialize;
use serde_json::json;

use crate::framelog::LaneUse;
use crate::telemetry::LogLevel;
use crate::telemetry::inventory::Host;

pub use metrics::text as metrics_text;

/// All numbers that anyone shows, at one time.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Counters of the kernel's path.
    pub kernel: Counters,
    /// Counters of the daemon's path.
    pub user: Counters,
    /// Frames that can be found.
    pub frames: u64,
    /// The lanes of the frame log: short-lived classes, long-lived classes.
    pub lanes: [LaneUse; 2],
    /// ADVERTs sent.
    pub adverts_sent: u64,
    /// `native`, `skb` or `off`.
    pub xdp_mode: &'static str,
    /// Why that mode.
    pub xdp_reason: String,
    /// What keeps the daemon from serving, each in one line.
    pub problems: Vec<String>,
    /// What keeps it from serving well, likewise.
    pub warnings: Vec<String>,
    /// What became of packets that the kernel program redirected, by interface.
    pub delivered: Vec<(String, Sent)>,
    /// Workers that serve.
    pub workers_ready: usize,
    /// Workers that should.
    pub workers_total: usize,
    /// The shared store, when there is one.
    pub store: Option<StoreUse>,
    /// The upstream endpoints.
    pub upstreams: Vec<Upstream>,
    /// Sources that the data groups are joined from; 0 with any source.
    pub ssm_sources: usize,
    /// Sockets that frames are received on.
    pub ingress_sockets: usize,
    /// The host.
    pub host: Host,
    /// True from the signal to the end.
    pub draining: bool,
}

impl Snapshot {
    /// True when NACKs are answered, well or not.
    pub fn is_ready(&self) -> bool {
        matches!(self.status(), "ready" | "degraded")
    }

    /// `ready`, or what the daemon is instead.
    pub fn status(&self) -> &'static str {
        if self.draining {
            "draining"
        } else if self.workers_ready < self.workers_total {
            "starting"
        } else if !self.problems.is_empty() {
            "not_ready"
        } else if self.warnings.is_empty() {
            "ready"
        } else {
            "degraded"
        }
    }

    /// One in which every metric stands, also of parts that may have nothing to show.
    pub fn complete() -> Self {
        Self {
            store: Some(StoreUse::default()),
            delivered: vec![(String::new(), Sent::default())],
            upstreams: vec![Upstream { rtt: Some(Duration::ZERO), ..Upstream::default() }],
            ..Self::default()
        }
    }
}

/// How the shared store does.
#[derive(Clone, Copy, Debug, Default)]
pub struct StoreUse {
    /// It is connected and answers.
    pub up: bool,
    /// Frames that wait to be written.
    pub queued: usize,
}

/// How an upstream endpoint does.
#[derive(Clone, Debug, Default)]
pub struct Upstream {
    /// Host and port.
    pub name: String,
    /// It is asked with the others.
    pub up: bool,
    /// Smoothed round-trip time, once measured.
    pub rtt: Option<Duration>,
}

/// Where the numbers come from.
pub trait Source: Send + Sync {
    /// The numbers now.
    fn snapshot(&self) -> Snapshot;
}

struct Admin {
    source: Arc<dyn Source>,
    log_level: LogLevel,
    started: Instant,
}

struct Route {
    method: Method,
    path: &'static str,
    handler: fn() -> MethodRouter<Arc<Admin>>,
}

/// Every route, once.
const ROUTES: &[Route] = &[
    Route { method: Method::GET, path: "/metrics", handler: || get(scrape) },
    Route { method: Method::GET, path: "/healthz", handler: || get(health) },
    Route { method: Method::GET, path: "/readyz", handler: || get(ready) },
    Route { method: Method::POST, path: "/loglevel", handler: || post(log_level_route) },
];

/// Method and path of every route.
pub fn routes() -> impl Iterator<Item = (Method, &'static str)> {
    ROUTES.iter().map(|route| (route.method.clone(), route.path))
}

/// The routes.
pub fn router(source: Arc<dyn Source>, log_level: LogLevel) -> Router {
    let admin = Arc::new(Admin { source, log_level, started: Instant::now() });
    ROUTES.iter().fold(Router::new(), |router, route| router.route(route.path, (route.handler)())).with_state(admin)
}

async fn scrape(State(admin): State<Arc<Admin>>) -> Response {
    match metrics::text(&admin.source.snapshot()) {
        Ok(text) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn health(State(admin): State<Arc<Admin>>) -> Response {
    Json(json!({ "status": "ok", "uptime_seconds": admin.started.elapsed().as_secs_f64() })).into_response()
}

async fn ready(State(admin): State<Arc<Admin>>) -> Response {
    let snapshot = admin.source.snapshot();
    let status = snapshot.status();
    let code = if snapshot.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = json!({
        "status": status,
        "reasons": snapshot.problems.iter().chain(&snapshot.warnings).collect::<Vec<_>>(),
        "workers_ready": snapshot.workers_ready,
        "workers_total": snapshot.workers_total,
        "xdp": { "mode": snapshot.xdp_mode, "reason": snapshot.xdp_reason },
    });
    (code, Json(body)).into_response()
}

#[derive(Deserialize)]
struct LevelQuery {
    level: String,
}

async fn log_level_route(State(admin): State<Arc<Admin>>, Query(query): Query<LevelQuery>) -> Response {
    match admin.log_level.set(&query.level) {
        Ok(()) => Json(json!({ "level": query.level })).into_response(),
        Err(error) => (StatusCode::BAD_REQUEST, error.to_string()).into_response(),
    }
}
