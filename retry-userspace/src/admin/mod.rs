//! HTTP on `-metrics-addr`: metrics, health, readiness, log level, status page. Reads, and decides nothing.

mod listener;
pub(crate) mod manage;
pub(crate) mod serve;
pub(crate) mod status;
pub(crate) mod tls;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::rejection::QueryRejection;
use axum::extract::{ConnectInfo, Query, State};
use axum::http::{Extensions, HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::json;

use crate::metrics::prometheus::{self, Format};
use crate::settings::AdminToken;
use crate::telemetry::LogLevel;

use manage::auth::{CurrentToken, carries};

use status::{History, StatusSource};

pub(crate) use listener::{Config, Listener};

struct Admin {
    source: Arc<dyn StatusSource>,
    history: Arc<History>,
    log_level: LogLevel,
    token: CurrentToken,
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
    Route { method: Method::GET, path: "/", handler: || get(status::show) },
    Route { method: Method::GET, path: "/status.css", handler: || get(status::style) },
    Route { method: Method::GET, path: "/status.js", handler: || get(status::script) },
    Route { method: Method::GET, path: "/v1/status", handler: || get(status::status) },
    Route { method: Method::POST, path: "/loglevel", handler: || post(log_level_route) },
];

/// Method and path of every route.
pub fn routes() -> impl Iterator<Item = (Method, &'static str)> {
    ROUTES.iter().map(|route| (route.method.clone(), route.path))
}

/// The routes. A client on another host changes the log level only with `token`.
pub fn router(source: Arc<dyn StatusSource>, log_level: LogLevel, token: Option<AdminToken>) -> Router {
    routed(source, Arc::default(), log_level, CurrentToken::new(token.as_ref()))
}

/// As [`router`], with what was counted before.
fn routed(source: Arc<dyn StatusSource>, history: Arc<History>, log_level: LogLevel, token: CurrentToken) -> Router {
    let admin = Arc::new(Admin { source, history, log_level, token, started: Instant::now() });
    ROUTES.iter().fold(Router::new(), |router, route| router.route(route.path, (route.handler)())).with_state(admin)
}

async fn scrape(State(admin): State<Arc<Admin>>, headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let format = Format::accepted(accept);
    match prometheus::encode(&admin.source.snapshot(), format) {
        Ok(text) => ([(header::CONTENT_TYPE, format.content_type())], text).into_response(),
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
        "xdp": { "mode": snapshot.xdp_mode, "reason": snapshot.xdp_why },
    });
    (code, Json(body)).into_response()
}

#[derive(Deserialize)]
struct LevelQuery {
    level: String,
}

async fn log_level_route(
    State(admin): State<Arc<Admin>>,
    extensions: Extensions,
    headers: HeaderMap,
    query: Result<Query<LevelQuery>, QueryRejection>,
) -> Response {
    let peer = extensions.get::<ConnectInfo<SocketAddr>>();
    let is_local = peer.is_some_and(|ConnectInfo(peer)| peer.ip().to_canonical().is_loopback());
    // A web page that a browser on this host shows is of another host: it says so by Origin (Fetch standard).
    let is_local = is_local && !headers.contains_key(header::ORIGIN);
    if !is_local && !admin.token.get().is_some_and(|token| carries(&headers, &token)) {
        let reason = "the log level is changed from a loopback address, or with the token of -admin-token-file or \
             ADMIN_TOKEN in a header Authorization: Bearer";
        return (StatusCode::FORBIDDEN, reason).into_response();
    }
    let query = match query {
        Ok(Query(query)) => query,
        Err(rejection) => return rejection.into_response(),
    };
    match admin.log_level.set(&query.level) {
        Ok(()) => Json(json!({ "level": query.level })).into_response(),
        Err(error) => (StatusCode::BAD_REQUEST, error.to_string()).into_response(),
    }
}
