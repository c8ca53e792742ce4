//! A GET in a few lines, and the Prometheus text format read into a map: enough for a daemon on the same machine.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result};

use crate::net::netns::Netns;

/// Status code and body of a GET, made from inside a namespace.
///
/// # Errors
/// No connection within a second, no answer within two, or one that is not HTTP.
pub fn get(ns: &Netns, address: SocketAddr, path: &str) -> Result<(u16, String)> {
    request(ns, address, "GET", path)
}

/// As [`get`] with another method and no body.
///
/// # Errors
/// How long the daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// As [`get`].
pub fn request(ns: &Netns, address: SocketAddr, method: &str, path: &str) -> Result<(u16, String)> {
    let (status, body) = exchange(ns, address, method, path, &[])?;
    Ok((status, String::from_utf8(body).with_context(|| format!("{method} http://{address}{path}: no text"))?))
}

/// As [`get`] with another method and raw bytes as body and answer.
///
/// # Errors
/// As [`get`].
pub fn exchange(ns: &Netns, address: SocketAddr, method: &str, path: &str, body: &[u8]) -> Result<(u16, Vec<u8>)> {
    ns.enter(|| {
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        // Version 1.0: the body ends with the connection and comes in one piece, never in chunks.
        write!(stream, "{method} {path} HTTP/1.0\r\nHost: {address}\r\nContent-Length: {}\r\n\r\n", body.len())?;
        stream.write_all(body)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        parse_answer(&answer)
    })
    .with_context(|| format!("{method} http://{address}{path}"))
}

fn parse_answer(answer: &[u8]) -> Result<(u16, Vec<u8>)> {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").context("an answer without a head")?;
    let head = String::from_utf8_lossy(&answer[..end]);
    let status =
        head.split_whitespace().nth(1).and_then(|word| word.parse().ok()).context("an answer without a status")?;
    Ok((status, answer[end + 4..].to_vec()))
}

/// One scrape: `name{labels}` as the text has it, and the value.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics {
    samples: BTreeMap<String, f64>,
}

impl Metrics {
    /// Reads the Prometheus text format; comments are left out, time stamps ignored.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut samples = BTreeMap::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            // A label's value may hold spaces: the name ends with the closing brace where there is one.
            let (name, rest) = match line.rfind('}') {
                Some(end) => line.split_at(end + 1),
                None => line.split_at(line.find(' ').unwrap_or(line.len())),
            };
            let value = rest.split_whitespace().next().and_then(|word| word.parse().ok());
            if let Some(value) = value {
                samples.insert(name.to_owned(), value);
            }
        }
        Self { samples }
    }

    /// One sample by its full name, labels in the order of the text.
    #[must_use]
    pub fn get(&self, sample: &str) -> Option<f64> {
        self.samples.get(sample).copied()
    }

    /// The sum over all samples of a metric that carry every one of these `label="value"` pairs; 0 when there are none.
    #[must_use]
    pub fn sum(&self, metric: &str, labels: &[(&str, &str)]) -> f64 {
        self.select(metric, labels).map(|(_, value)| value).sum()
    }

    /// As [`Metrics::sum`], as a count.
    #[must_use]
    pub fn count(&self, metric: &str, labels: &[(&str, &str)]) -> u64 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "counters are whole, positive and far below 2^53; the cast saturates"
        )]
        let count = self.sum(metric, labels) as u64;
        count
    }

    /// The value of `label` on the first sample of a metric whose value is 1: the way in which a state is shown.
    #[must_use]
    pub fn state(&self, metric: &str, label: &str) -> Option<String> {
        let (name, _) = self.select(metric, &[]).find(|(_, value)| *value >= 1.0)?;
        let (_, rest) = name.split_once(&format!("{label}=\""))?;
        rest.split('"').next().map(str::to_owned)
    }

    /// All samples, in order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, f64)> {
        self.samples.iter().map(|(name, value)| (name.as_str(), *value))
    }

    fn select<'a>(&'a self, metric: &'a str, labels: &'a [(&'a str, &'a str)]) -> impl Iterator<Item = (&'a str, f64)> {
        self.iter().filter(move |(name, _)| {
            let (base, carried) = name.split_once('{').unwrap_or((name, ""));
            base == metric && labels.iter().all(|(label, value)| carried.contains(&format!("{label}=\"{value}\"")))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Metrics, parse_answer};

    const TEXT: &str = "# HELP x y\n# TYPE bre_cache_hits_total counter\n\
        bre_cache_hits_total{path=\"xdp\"} 40\nbre_cache_hits_total{path=\"user\"} 2\n\
        bre_cache_hits_total_other 7\nbre_xdp_mode{mode=\"off\",reason=\"\"} 0\n\
        bre_xdp_mode{mode=\"native\",reason=\"as asked for\"} 1\n";

    #[test]
    fn both_paths_add_up() {
        let metrics = Metrics::parse(TEXT);
        assert_eq!(metrics.count("bre_cache_hits_total", &[]), 42);
        assert_eq!(metrics.count("bre_cache_hits_total", &[("path", "user")]), 2);
        assert_eq!(metrics.count("bre_absent", &[]), 0);
        assert_eq!(metrics.get("bre_cache_hits_total_other"), Some(7.0));
        assert_eq!(metrics.state("bre_xdp_mode", "mode").as_deref(), Some("native"));
        assert_eq!(metrics.state("bre_xdp_mode", "reason").as_deref(), Some("as asked for"));
    }

    #[test]
    fn an_answer_has_status_and_body() {
        let (status, body) = parse_answer(b"HTTP/1.0 503 x\r\na: b\r\n\r\nstarting").expect("whole");
        assert_eq!((status, body.as_slice()), (503, &b"starting"[..]));
        assert!(parse_answer(b"nonsense").is_err());
    }
}
