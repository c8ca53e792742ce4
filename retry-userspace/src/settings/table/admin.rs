//! HTTP, and the end.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::settings::accepts::{YEAR, ZERO, any, optional, time};
use crate::settings::error::SettingsError;
use crate::settings::rows::{Read, Row, Rows};
use crate::settings::{hosts, values};

/// HTTP, and the end.
#[derive(Clone, Debug)]
pub struct Admin {
    /// HTTP address of metrics and health. Port 0 takes a free one.
    pub metrics_addr: SocketAddr,
    /// HTTP address of the management API; none: no API. Not loopback: [`Admin::token`] is set.
    pub addr: Option<SocketAddr>,
    /// The token of `admin-token-file`, else of `ADMIN_TOKEN`; none: every request is served.
    pub token: Option<AdminToken>,
    /// `admin-token-file`.
    pub token_file: Option<PathBuf>,
    /// How long a shutdown is announced. NACKs are answered meanwhile.
    pub drain_timeout: Duration,
    /// How long what is in flight at the end may take: requests of the management API, NACKs that wait for a backend.
    pub shutdown_grace: Duration,
}

/// A secret that no log line shows.
#[derive(Clone, Eq, PartialEq)]
pub struct AdminToken(pub String);

impl fmt::Debug for AdminToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AdminToken(***)")
    }
}

impl Admin {
    pub(in crate::settings) fn read(rows: &mut Rows<'_>) -> Read<Self> {
        rows.group("Administration");
        let metrics_addr = rows.read(Row {
            flag: "metrics-addr",
            env: "METRICS_ADDR",
            default: ":9400",
            accepts: any("address:port, name:port or :port; port 0: any free one", hosts::listen_address),
            meaning: "HTTP address of metrics and health.",
            consequence: "No address: every address of the host.",
        })?;
        let addr = rows.read(Row {
            flag: "admin-addr",
            env: "ADMIN_ADDR",
            default: "",
            accepts: optional(any("address:port, name:port or :port", hosts::listen_address)),
            meaning: "HTTP address of the management API.",
            consequence: "Not set: no API. Any other than a loopback address needs a token.",
        })?;
        let (token, token_file) = Self::read_token(rows)?;
        Ok(Self {
            metrics_addr,
            addr,
            token,
            token_file,
            drain_timeout: rows.read(Row {
                flag: "drain-timeout",
                env: "DRAIN_TIMEOUT",
                default: "0s",
                accepts: time(ZERO, YEAR),
                meaning: "How long a shutdown is announced before the sockets close.",
                consequence: "NACKs are answered meanwhile.",
            })?,
            shutdown_grace: rows.read(Row {
                flag: "shutdown-grace",
                env: "SHUTDOWN_GRACE",
                default: "30s",
                accepts: time(ZERO, YEAR),
                meaning: "How long requests of the management API, and NACKs that wait for Redis or an upstream, may take at the end.",
                consequence: "With nothing in flight the daemon ends at once; a second signal ends it, too.",
            })?,
        })
    }

    fn read_token(rows: &mut Rows<'_>) -> Read<(Option<AdminToken>, Option<PathBuf>)> {
        let file = rows.read(Row {
            flag: "admin-token-file",
            env: "ADMIN_TOKEN_FILE",
            default: "",
            accepts: any("the path of a file", values::optional_path),
            meaning: "File with the bearer token of the management API.",
            consequence: "Requests without it get 401. The variable ADMIN_TOKEN holds the token itself and is used when there is no file.",
        })?;
        if let Some(file) = file {
            let text = std::fs::read_to_string(&file)
                .map_err(|error| rows.refusal("admin-token-file", format!("a readable file is accepted: {error}")))?;
            let token = token(&text).ok_or_else(|| {
                rows.refusal("admin-token-file", "a file with one line, the token, without spaces is accepted")
            })?;
            return Ok((Some(token), Some(file)));
        }
        let Some(text) = rows.admin_token() else { return Ok((None, None)) };
        token(text).map(|token| (Some(token), None)).ok_or_else(|| SettingsError::Value {
            setting: "ADMIN_TOKEN ***".to_owned(),
            accepted: "a token without spaces is accepted".to_owned(),
        })
    }
}

/// What an `Authorization` header can carry (RFC 6750, section 2.1); editors end the line.
fn token(text: &str) -> Option<AdminToken> {
    let text = text.trim_end_matches(['\r', '\n']);
    (!text.is_empty() && text.bytes().all(|c| c.is_ascii_graphic())).then(|| AdminToken(text.to_owned()))
}
