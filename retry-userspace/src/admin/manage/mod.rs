//! The management API, on `-admin-addr`: frames by key, numbers, settings, who else is there, and the order to drain.
//!
//! Its own listener, so that metrics can be open where this is not. What it shows and does stands behind [`Backend`];
//! docs/openapi.json is its contract, and a test holds it to [`routes`].

pub(crate) mod auth;
mod backend;
mod error;
mod frames;
mod listener;
mod overview;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{Method, StatusCode};
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodRouter, delete, get, post, put};

use crate::settings::AdminToken;
use auth::CurrentToken;
use error::ApiError;

pub use backend::{
    Backend, BackendError, ConfigOutcome, ConfigRefused, Members, PutError, PutOutcome, RedisMembers, RedisNode,
    StoredFrame, Whence,
};
pub use frames::LONGEST_FRAME;
pub(crate) use listener::{Config, Listener};

/// The backend, as every handler has it.
type Shared = Arc<dyn Backend>;

struct Route {
    method: Method,
    path: &'static str,
    handler: fn() -> MethodRouter<Shared>,
}

/// Every route, once.
const ROUTES: &[Route] = &[
    Route { method: Method::GET, path: "/v1/frames/{hashkey}/{seq}", handler: || get(frames::read) },
    Route { method: Method::PUT, path: "/v1/frames/{hashkey}/{seq}", handler: || put(frames::store) },
    Route { method: Method::DELETE, path: "/v1/frames/{hashkey}/{seq}", handler: || delete(frames::remove) },
    Route { method: Method::GET, path: "/v1/stats", handler: || get(overview::stats) },
    Route { method: Method::GET, path: "/v1/config", handler: || get(overview::config) },
    Route { method: Method::POST, path: "/v1/config", handler: || post(overview::set_config) },
    Route { method: Method::GET, path: "/v1/cluster/members", handler: || get(overview::members) },
    Route { method: Method::POST, path: "/v1/drain", handler: || post(overview::drain) },
];

/// Method and path of every route, parameters in braces.
pub fn routes() -> impl Iterator<Item = (Method, &'static str)> {
    ROUTES.iter().map(|route| (route.method.clone(), route.path))
}

/// The API over `backend`. With a token, every request has to carry it, also one for a path that is not there; without
/// one, requests that a browser sends for a page of another origin are refused.
pub fn router(backend: Arc<dyn Backend>, token: Option<AdminToken>) -> Router {
    routed(backend, CurrentToken::new(token.as_ref()))
}

/// As [`router`], with a token that may change.
fn routed(backend: Arc<dyn Backend>, token: CurrentToken) -> Router {
    let router = ROUTES
        .iter()
        .fold(Router::new(), |router, route| router.route(route.path, (route.handler)()))
        .fallback(async || ApiError::new(StatusCode::NOT_FOUND, "no_such_path", "docs/openapi.json lists the paths"))
        .method_not_allowed_fallback(async || {
            ApiError::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                "the header Allow lists the methods of this path",
            )
        })
        .layer(DefaultBodyLimit::max(LONGEST_FRAME))
        .with_state(backend);
    // Outermost, so that nothing is told, and no body read, before the token is seen.
    router.layer(from_fn_with_state(token, auth::admit))
}
