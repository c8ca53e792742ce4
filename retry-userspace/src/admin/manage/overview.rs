//! Numbers, settings, members, and the order to drain.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::StatusCode;
use bytes::Bytes;
use retry_common::counter::{Counter, Side};
use retry_common::wire::advert;
use serde_json::{Map, Value, json};

use super::Shared;
use super::backend::{Members, RedisMembers};
use super::error::ApiError;
use crate::beacon::registry::Endpoint;
use crate::metrics::{RINGS, Snapshot};
use crate::settings::{Change, SetBy};

/// Words for the `FLAG_` bits of an ADVERT.
const FLAGS: [(u16, &str); 4] = [
    (advert::FLAG_HAS_PARENT, "has_parent"),
    (advert::FLAG_DRAINING, "draining"),
    (advert::FLAG_UNICAST, "unicast"),
    (advert::FLAG_MULTICAST, "multicast"),
];

pub(super) async fn stats(State(backend): State<Shared>) -> Json<Value> {
    Json(stats_of(&backend.stats()))
}

pub(super) async fn config(State(backend): State<Shared>) -> Json<Value> {
    let settings: Vec<Value> = backend
        .config()
        .iter()
        .map(|one| {
            let set_by = match one.set_by {
                SetBy::Flag => "flag",
                SetBy::Env => "env",
                SetBy::File => "file",
                SetBy::Api => "api",
                SetBy::Default => "default",
            };
            json!({
                "name": one.flag.name,
                "env": one.flag.env,
                "value": one.value,
                "set_by": set_by,
                "live": one.flag.live,
                "after_restart": one.after_restart,
            })
        })
        .collect();
    Json(json!({ "settings": settings }))
}

pub(super) async fn set_config(
    State(backend): State<Shared>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Value>, ApiError> {
    let body = body.map_err(|error| match error.status() {
        StatusCode::PAYLOAD_TOO_LARGE => ApiError::too_large("no body of that length holds settings"),
        _ => ApiError::bad_request("bad_body", error.body_text()),
    })?;
    let values = if body.is_empty() { None } else { Some(values_of(&body)?) };
    let outcome = backend.set_config(values).await?;
    let changes = |changes: &[Change]| -> Vec<Value> {
        changes.iter().map(|one| json!({ "name": one.name, "from": one.from, "to": one.to })).collect()
    };
    Ok(Json(json!({ "changed": changes(&outcome.changed), "needs_restart": changes(&outcome.waiting) })))
}

/// The settings of a body, by flag, as a flag would have them.
fn values_of(body: &[u8]) -> Result<BTreeMap<String, Option<String>>, ApiError> {
    let refuse = |reason: String| ApiError::bad_request("bad_settings", reason);
    let object: Map<String, Value> = serde_json::from_slice(body)
        .map_err(|error| refuse(format!("no body, or a JSON object of settings, is accepted: {error}")))?;
    let text_of = |value: &Value| match value {
        Value::Null => Some(None),
        Value::String(text) => Some(Some(text.clone())),
        Value::Number(number) => Some(Some(number.to_string())),
        Value::Bool(truth) => Some(Some(truth.to_string())),
        Value::Array(parts) => {
            let texts: Option<Vec<&str>> = parts.iter().map(Value::as_str).collect();
            texts.map(|texts| Some(texts.join(",")))
        }
        Value::Object(_) => None,
    };
    let values = object.into_iter().map(|(name, value)| match text_of(&value) {
        Some(text) => Ok((name, text)),
        None => {
            Err(refuse(format!("{name}: a string, a number, true, false, an array of strings or null is accepted")))
        }
    });
    values.collect()
}

pub(super) async fn members(State(backend): State<Shared>) -> Json<Value> {
    Json(members_of(&backend.members().await, backend.is_draining()))
}

pub(super) async fn drain(State(backend): State<Shared>) -> (StatusCode, Json<Value>) {
    let began = backend.drain();
    if began {
        tracing::info!("the management API was told to drain");
    }
    (StatusCode::ACCEPTED, Json(json!({ "status": "draining", "began": began })))
}

fn stats_of(snapshot: &Snapshot) -> Value {
    let rings: Map<String, Value> = RINGS
        .iter()
        .zip(&snapshot.lanes)
        .map(|(name, lane)| {
            let ring = json!({
                "used_bytes": lane.used_bytes,
                "size_bytes": lane.size_bytes,
                "oldest_age_ms": lane.oldest_age_ms,
            });
            ((*name).to_owned(), ring)
        })
        .collect();
    let upstreams: Vec<Value> = snapshot
        .upstreams
        .iter()
        .map(|one| json!({ "name": one.name, "up": one.up, "rtt_seconds": one.rtt.map(|rtt| rtt.as_secs_f64()) }))
        .collect();
    json!({
        "frames": snapshot.frames,
        "rings": rings,
        "adverts_sent": snapshot.user.get(Counter::AdvertsSent),
        "xdp": { "mode": snapshot.xdp_mode, "reason": snapshot.xdp_why },
        "workers": { "ready": snapshot.workers_ready, "total": snapshot.workers_total },
        "ingress": { "sockets": snapshot.ingress_sockets, "ssm_sources": snapshot.ssm_sources },
        "store": snapshot.store.as_ref().map(|store| json!({ "up": store.up, "queued_frames": store.queued })),
        "upstreams": upstreams,
        "draining": snapshot.draining,
        "counters": counters_of(snapshot),
    })
}

/// The series of `/metrics`, under the same names and labels.
fn counters_of(snapshot: &Snapshot) -> Vec<Value> {
    let mut all = Vec::new();
    for counter in Counter::ALL {
        let series = counter.series();
        let mut push = |path: Option<&str>, value: u64| {
            let labels = series.labels.iter().copied().chain(path.map(|path| ("path", path)));
            let labels: Map<String, Value> =
                labels.map(|(name, value)| (name.to_owned(), Value::from(value))).collect();
            all.push(json!({ "name": series.name, "labels": labels, "value": value }));
        };
        let (kernel, user) = (snapshot.kernel.get(*counter), snapshot.user.get(*counter));
        match series.side {
            Side::User => push(None, user),
            Side::Kernel => push(None, kernel),
            Side::Both => {
                push(Some("xdp"), kernel);
                push(Some("user"), user);
            }
        }
    }
    let sources = snapshot.stored.sources.iter().map(|(source, frames)| (source.to_string(), *frames));
    for (source, frames) in sources.chain([("other".to_owned(), snapshot.stored.other)]) {
        all.push(json!({ "name": "bre_cache_stored_total", "labels": { "source": source }, "value": frames }));
    }
    all
}

fn members_of(members: &Members, is_draining: bool) -> Value {
    let redis = match &members.redis {
        RedisMembers::NotConfigured => json!({ "state": "not_configured", "nodes": [] }),
        RedisMembers::Nodes(nodes) => json!({ "state": "available", "nodes": nodes }),
        RedisMembers::Unavailable(reason) => json!({ "state": "unavailable", "reason": reason, "nodes": [] }),
    };
    let own_id = advert::instance_id(&members.instance);
    json!({
        "self": { "instance": members.instance, "instance_id": id_of(own_id), "draining": is_draining },
        "endpoints": members.endpoints.iter().map(endpoint_of).collect::<Vec<_>>(),
        "redis": redis,
    })
}

fn endpoint_of(endpoint: &Endpoint) -> Value {
    let flags: Vec<_> = FLAGS.iter().filter(|(bit, _)| endpoint.flags & bit != 0).map(|(_, word)| *word).collect();
    json!({
        "instance_id": id_of(endpoint.instance_id),
        "nack": endpoint.nack.to_string(),
        "tier": endpoint.tier,
        "preference": endpoint.preference,
        "flags": flags,
        "draining": endpoint.is_draining(),
        "heard_from": endpoint.heard_from.to_string(),
        "age_seconds": endpoint.age.as_secs_f64(),
        "expires_in_seconds": endpoint.expires_in.as_secs_f64(),
    })
}

/// An instance id as logs and captures show it.
fn id_of(instance_id: u32) -> String {
    format!("{instance_id:#010x}")
}
