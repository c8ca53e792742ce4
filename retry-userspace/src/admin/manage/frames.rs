//! `/v1/frames/{hashkey}/{seq}`: one frame, as its bytes.

use std::num::IntErrorKind;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection, QueryRejection};
use axum::extract::{FromRequestParts, Path, Query, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use retry_common::key::FrameKey;
use retry_common::wire::frame::Frame;
use serde::Deserialize;
use serde_json::json;

use super::Shared;
use super::backend::PutOutcome;
use super::error::ApiError;
use crate::settings::parse_duration;

/// The longest frame that is taken, bytes: what a UDP datagram carries over IPv4 as over IPv6.
pub const LONGEST_FRAME: usize = 65_507;

/// Milliseconds that are left of the frame's life.
const TTL_MS: HeaderName = HeaderName::from_static("frame-ttl-ms");
/// The frame's class.
const CLASS: HeaderName = HeaderName::from_static("frame-class");
/// Who had the frame.
const SOURCE: HeaderName = HeaderName::from_static("frame-source");

/// Bounds of `?ttl=`, those of the settings `cache-ttl-*`.
const SHORTEST_LIFE: Duration = Duration::from_millis(1);
const LONGEST_LIFE: Duration = Duration::from_secs(1_176 * 3_600);

const OCTETS: &str = "application/octet-stream";

/// The key in the path.
pub(super) struct Key(FrameKey);

impl FromRequestParts<Shared> for Key {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &Shared) -> Result<Self, ApiError> {
        let path = Path::<(String, String)>::from_request_parts(parts, state).await;
        let Path((hash_key, seq_num)) =
            path.map_err(|error: PathRejection| ApiError::bad_request("bad_path", error.body_text()))?;
        key_of(&hash_key, &seq_num).map(Self)
    }
}

/// There while the daemon takes writes.
pub(super) struct Writable;

impl FromRequestParts<Shared> for Writable {
    type Rejection = ApiError;

    async fn from_request_parts(_: &mut Parts, backend: &Shared) -> Result<Self, ApiError> {
        if backend.is_draining() {
            let reason = "the daemon is about to end: write to another instance";
            return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "draining", reason));
        }
        Ok(Self)
    }
}

pub(super) async fn read(Key(key): Key, State(backend): State<Shared>) -> Result<Response, ApiError> {
    let frame = backend.get(key).await?.ok_or_else(|| no_such_frame(key))?;
    let headers = [
        (header::CONTENT_TYPE, OCTETS.to_owned()),
        (header::CACHE_CONTROL, "no-store".to_owned()),
        (TTL_MS, frame.life_left.as_millis().to_string()),
        (CLASS, frame.class.name().to_owned()),
        (SOURCE, frame.whence.name().to_owned()),
    ];
    Ok((headers, frame.bytes).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PutQuery {
    ttl: Option<String>,
}

pub(super) async fn store(
    _: Writable,
    Key(key): Key,
    State(backend): State<Shared>,
    query: Result<Query<PutQuery>, QueryRejection>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    if headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind != OCTETS) {
        let reason = format!("the body is the frame's bytes: {OCTETS}, or no Content-Type");
        return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "content_type", reason));
    }
    let Query(query) = query.map_err(|error| ApiError::bad_request("bad_query", error.body_text()))?;
    let life = query.ttl.as_deref().map(life_of).transpose()?;
    let body = body.map_err(|error| match error.status() {
        StatusCode::PAYLOAD_TOO_LARGE => ApiError::too_large(format!("a frame has at most {LONGEST_FRAME} bytes")),
        _ => ApiError::bad_request("bad_body", error.body_text()),
    })?;
    judge(key, &body)?;
    let outcome = backend.put(key, body, life).await?;
    let status = match outcome {
        PutOutcome::Stored => StatusCode::CREATED,
        PutOutcome::Replaced | PutOutcome::Duplicate => StatusCode::OK,
    };
    Ok((status, Json(json!({ "outcome": outcome.name() }))).into_response())
}

pub(super) async fn remove(_: Writable, Key(key): Key, State(backend): State<Shared>) -> Result<StatusCode, ApiError> {
    if backend.delete(key).await? { Ok(StatusCode::NO_CONTENT) } else { Err(no_such_frame(key)) }
}

fn no_such_frame(key: FrameKey) -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "no_such_frame", format!("no frame {key} is held"))
}

/// The key of a path: 16 hex digits and a number.
fn key_of(hash_key: &str, seq_num: &str) -> Result<FrameKey, ApiError> {
    let digits = hash_key.strip_prefix("0x").unwrap_or(hash_key);
    let hash_key = Some(digits)
        .filter(|digits| digits.len() == 16 && digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
        .and_then(|digits| u64::from_str_radix(digits, 16).ok())
        .ok_or_else(|| {
            ApiError::bad_request("bad_hashkey", "a HashKey of 16 hex digits, with or without 0x, is accepted")
        })?;
    let seq_num = number(seq_num).filter(|seq_num| *seq_num != 0).ok_or_else(|| {
        ApiError::bad_request("bad_seq", "a SeqNum from 1 to 2^64 - 1, decimal or hex with 0x, is accepted")
    })?;
    Ok(FrameKey::new(hash_key, seq_num))
}

fn number(text: &str) -> Option<u64> {
    let (digits, radix) = text.strip_prefix("0x").map_or((text, 10), |digits| (digits, 16));
    // The standard library takes a sign, too.
    if digits.starts_with('+') { None } else { u64::from_str_radix(digits, radix).ok() }
}

/// The life of `?ttl=`: in Go's notation as in the settings, or in seconds.
fn life_of(text: &str) -> Result<Duration, ApiError> {
    let seconds = match text.parse::<u64>() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(error) if *error.kind() == IntErrorKind::PosOverflow => None,
        Err(_) => parse_duration(text).ok(),
    };
    seconds.filter(|life| (SHORTEST_LIFE..=LONGEST_LIFE).contains(life)).ok_or_else(|| {
        ApiError::bad_request("bad_ttl", "seconds, or a duration such as 300ms or 1m30s, from 1ms to 1176h is accepted")
    })
}

/// Whether `bytes` are the frame of `key`.
fn judge(key: FrameKey, bytes: &[u8]) -> Result<(), ApiError> {
    let frame = Frame::parse(bytes)
        .map_err(|error| ApiError::unprocessable("not_a_frame", format!("the body is no frame: {error}")))?;
    match frame.head().cache_key() {
        Some(own) if own == key => Ok(()),
        Some(own) => Err(ApiError::unprocessable("key_differs", format!("the path says {key}, the frame says {own}"))),
        None => Err(ApiError::unprocessable("not_numbered", "the frame has no SeqNum: no listener could ask for it")),
    }
}
