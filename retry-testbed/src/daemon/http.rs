//! Requests to the daemon's HTTP servers, made from inside a namespace.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result};
use ureq::{Agent, Body, http};

use crate::net::netns::Netns;

/// How long each step of a request may take: the connection, the request, the head of the answer, its body.
const PATIENCE: Duration = Duration::from_secs(10);

/// Status code and body of a GET.
///
/// # Errors
/// No connection, no answer in time, or one that is not text over HTTP.
pub fn get(ns: &Netns, address: SocketAddr, path: &str) -> Result<(u16, String)> {
    request(ns, address, "GET", path)
}

/// As [`get`], with another method and no body.
///
/// # Errors
/// As [`get`].
pub fn request(ns: &Netns, address: SocketAddr, method: &str, path: &str) -> Result<(u16, String)> {
    let (status, body) = exchange(ns, address, method, path, None, &[])?;
    Ok((status, String::from_utf8(body).with_context(|| format!("{method} http://{address}{path}: no text"))?))
}

/// As [`get`], with a bearer token, and with bytes as the request's body and the answer's.
///
/// # Errors
/// As [`get`], where the answer need not be text.
pub fn exchange(
    ns: &Netns,
    address: SocketAddr,
    method: &str,
    path: &str,
    token: Option<&str>,
    body: &[u8],
) -> Result<(u16, Vec<u8>)> {
    let url = format!("http://{address}{path}");
    let send = || -> Result<(u16, Vec<u8>)> {
        let mut request = http::Request::builder().method(method).uri(&url);
        if let Some(token) = token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        // A GET must not have a body, not even an empty one.
        let mut answer: http::Response<Body> =
            if body.is_empty() { agent().run(request.body(())?)? } else { agent().run(request.body(body)?)? };
        Ok((answer.status().as_u16(), answer.body_mut().read_to_vec()?))
    };
    // The client connects and reads on the thread that has entered the namespace.
    ns.enter(send).with_context(|| format!("{method} {url}"))
}

/// A client for one request: every status is an answer, no proxy comes between, and no connection is kept.
fn agent() -> Agent {
    // A bound on name resolution is absent: ureq would start a thread for it, and the address is a number.
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .proxy(None)
        .max_redirects(0)
        .max_idle_connections(0)
        .timeout_connect(Some(PATIENCE))
        .timeout_send_request(Some(PATIENCE))
        .timeout_send_body(Some(PATIENCE))
        .timeout_recv_response(Some(PATIENCE))
        .timeout_recv_body(Some(PATIENCE));
    config.build().into()
}
