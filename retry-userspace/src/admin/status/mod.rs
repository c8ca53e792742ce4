//! The status page on `-metrics-addr`: `GET /`, and `GET /v1/status` with what the page shows.
//!
//! The page is whole without its script: [`page`] writes every value, escaped. The script replaces the values from
//! [`model::Status`] and draws the charts. No part of it comes from another host.

mod attention;
mod history;
mod model;
mod page;

use std::net::SocketAddrV6;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};

use super::Admin;
use crate::beacon::registry::Endpoint;
use crate::metrics::Source;
use crate::privileges::Rights;
use model::Status;

pub(super) use history::{History, keep};

const STYLE: &str = include_str!("status.css");
const SCRIPT: &str = include_str!("status.js");

/// What a browser may load for the page: its own style, its own script, its own JSON, and nothing of another host.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Where the status comes from.
pub trait StatusSource: Source {
    /// What the numbers do not say.
    fn details(&self) -> Details;
}

/// What the page shows beside the numbers of a snapshot.
#[derive(Clone, Debug, Default)]
pub struct Details {
    /// The interfaces in use, as they are now.
    pub interfaces: Vec<InterfaceUse>,
    /// The endpoints heard by beacon, in the order in which listeners ask them.
    pub peers: Vec<Peer>,
    /// The last error of the shared store, while there is one.
    pub store_why: Option<String>,
    /// Limits: flag without the dash, and the value in force.
    pub limits: Vec<(&'static str, String)>,
    /// What outlives the daemon.
    pub handover: Handover,
    /// What the process may do.
    pub rights: Rights,
}

/// One interface, and what the daemon uses it for.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct InterfaceUse {
    /// Its name.
    pub name: String,
    /// `frames`, `NACKs`, `repairs`.
    pub roles: Vec<&'static str>,
}

/// An endpoint heard by beacon.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Where it takes NACKs.
    pub nack: SocketAddrV6,
    /// Lower is asked first.
    pub tier: u8,
    /// Higher is asked first within a tier.
    pub preference: u8,
    /// It is about to end.
    pub draining: bool,
    /// Since its last beacon.
    pub age: Duration,
    /// Until it is forgotten.
    pub expires_in: Duration,
}

impl From<&Endpoint> for Peer {
    fn from(endpoint: &Endpoint) -> Self {
        let Endpoint { nack, tier, preference, age, expires_in, .. } = *endpoint;
        Self { nack, tier, preference, draining: endpoint.is_draining(), age, expires_in }
    }
}

/// What outlives the daemon, and for how long.
#[derive(Clone, Copy, Debug, Default)]
pub struct Handover {
    /// `bpf-handover`, where a kernel program is in use.
    pub on: bool,
    /// `bpf-lease`.
    pub bpf_lease: Duration,
    /// `daemon-lease`.
    pub daemon_lease: Duration,
}

fn status_of(admin: &Admin) -> Status {
    let (snapshot, details) = (admin.source.snapshot(), admin.source.details());
    let growth = admin.history.growth(&snapshot);
    Status::of(&snapshot, &details, &growth, admin.started.elapsed())
}

/// Headers of every answer here: it is of now, it is what it says, and it goes into no frame.
fn guarded(kind: &'static str, body: impl IntoResponse) -> Response {
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
    ];
    (headers, body).into_response()
}

pub(super) async fn show(State(admin): State<Arc<Admin>>) -> Response {
    guarded("text/html; charset=utf-8", page::render(&status_of(&admin)).into_string())
}

pub(super) async fn status(State(admin): State<Arc<Admin>>) -> Response {
    guarded("application/json", Json(status_of(&admin)))
}

pub(super) async fn style() -> Response {
    guarded("text/css; charset=utf-8", STYLE)
}

pub(super) async fn script() -> Response {
    guarded("text/javascript; charset=utf-8", SCRIPT)
}
