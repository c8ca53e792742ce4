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
    /// TLS of the management API; none: it speaks plain HTTP.
    pub tls: Option<AdminTls>,
    /// `admin-token-file`.
    pub token_file: Option<PathBuf>,
    /// How long a shutdown is announced. NACKs are answered meanwhile.
    pub drain_timeout: Duration,
    /// How long what is in flight at the end may take: requests of the management API, NACKs that wait for a backend.
    pub shutdown_grace: Duration,
}

/// Files (PEM) of the management API's TLS.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AdminTls {
    /// `admin-tls-cert`: the certificate, and those between it and its authority.
    pub cert: PathBuf,
    /// `admin-tls-key`: its private key.
    pub key: PathBuf,
    /// `admin-tls-client-ca`: authorities that vouch for clients; none: clients need no certificate.
    pub client_ca: Option<PathBuf>,
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
            consequence: "Not set: no API. Any other than a loopback address needs a token, or client certificates.",
        })?;
        let (token, token_file) = Self::read_token(rows)?;
        let tls = Self::read_tls(rows)?;
        Ok(Self {
            metrics_addr,
            addr,
            token,
            token_file,
            tls,
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

    /// True when there is a file of the token or of TLS to be read again.
    pub(crate) const fn has_files(&self) -> bool {
        self.token_file.is_some() || self.tls.is_some()
    }

    fn read_tls(rows: &mut Rows<'_>) -> Read<Option<AdminTls>> {
        let file = || any("the path of a file", values::optional_path);
        let cert = rows.read(Row {
            flag: "admin-tls-cert",
            env: "ADMIN_TLS_CERT",
            default: "",
            accepts: file(),
            meaning: "File of the management API's certificate (PEM), with those between it and its authority.",
            consequence: "The API then speaks TLS 1.2 and 1.3 and nothing else. Needs -admin-tls-key. A reload reads both again.",
        })?;
        let key = rows.read(Row {
            flag: "admin-tls-key",
            env: "ADMIN_TLS_KEY",
            default: "",
            accepts: file(),
            meaning: "File of its private key (PEM).",
            consequence: "Needs -admin-tls-cert.",
        })?;
        let client_ca = rows.read(Row {
            flag: "admin-tls-client-ca",
            env: "ADMIN_TLS_CLIENT_CA",
            default: "",
            accepts: file(),
            meaning: "File of certificate authorities (PEM) that vouch for clients of the management API.",
            consequence: "A client without a certificate of theirs is refused. Needs -admin-tls-cert.",
        })?;
        match (cert, key, client_ca) {
            (Some(cert), Some(key), client_ca) => Ok(Some(AdminTls { cert, key, client_ca })),
            (None, None, None) => Ok(None),
            (Some(_), None, _) => Err(rows.refusal("admin-tls-key", "-admin-tls-cert needs it: a file is accepted")),
            (None, Some(_), _) => Err(rows.refusal("admin-tls-cert", "-admin-tls-key needs it: a file is accepted")),
            (None, None, Some(_)) => {
                Err(rows.refusal("admin-tls-cert", "-admin-tls-client-ca needs it: a file is accepted"))
            }
        }
    }

    fn read_token(rows: &mut Rows<'_>) -> Read<(Option<AdminToken>, Option<PathBuf>)> {
        let file = rows.read(Row {
            flag: "admin-token-file",
            env: "ADMIN_TOKEN_FILE",
            default: "",
            accepts: any("the path of a file", values::optional_path),
            meaning: "File with the bearer token of the management API.",
            consequence: "Requests without it get 401. SIGHUP reads it again. The variable ADMIN_TOKEN holds the token itself and is used when there is no file.",
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
