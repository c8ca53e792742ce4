//! Logs and traces.

use std::time::Duration;

use tracing::Level;

use crate::settings::accepts::{MILLISECOND, YEAR, any, one_of, optional, switch, time, whole};
use crate::settings::rows::{Read, Row, Rows};
use crate::settings::{hosts, values};

/// How a log line looks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LogFormat {
    /// On stderr, for people.
    Text,
    /// On stdout, one object per line.
    Json,
}

/// Logs and traces.
#[derive(Clone, Debug)]
pub struct Telemetry {
    /// Our name in beacons, logs and claims, never empty. Two of one name are one endpoint to listeners.
    pub instance: String,
    /// How a line looks.
    pub format: LogFormat,
    /// `log-level`, at least debug with `debug`. It changes while the daemon runs.
    pub level: Level,
    /// Log lines of the kernel program too: it is slower with them.
    pub debug: bool,
    /// True when it is measured how long NACKs, frames and backends take.
    pub latency_histograms: bool,
    /// So many sources and flows that ask most are shown; 0: they are not counted.
    pub top_talkers: usize,
    /// What goes to a collector.
    pub otlp: Otlp,
}

/// What goes to an OpenTelemetry collector.
#[derive(Clone, Debug)]
pub struct Otlp {
    /// `host:port` or URL; none: nothing is sent.
    pub endpoint: Option<String>,
    /// Time between exports.
    pub interval: Duration,
    /// Share of NACKs that are traced, 0 to 1.
    pub sampling: f64,
}

impl Telemetry {
    pub(in crate::settings) fn read(rows: &mut Rows<'_>) -> Read<Self> {
        rows.group("Telemetry");
        let instance = rows.read(Row {
            flag: "instance",
            env: "INSTANCE_ID",
            default: "",
            accepts: optional(any("a name", |text| values::filled(text, "a name"))),
            meaning: "Name of this instance in beacons, logs and claims.",
            consequence: "Two instances of one name are one endpoint to listeners. Not set: the host name.",
        })?;
        let format = rows.read(Row {
            flag: "log-format",
            env: "LOG_FORMAT",
            default: "text",
            accepts: one_of(&[("text", LogFormat::Text), ("json", LogFormat::Json)]),
            meaning: "text on stderr, or json on stdout, one object per line.",
            consequence: "Every line carries service, instance and version.",
        })?;
        let level = rows.read(Row {
            flag: "log-level",
            env: "LOG_LEVEL",
            default: "info",
            accepts: one_of(&[
                ("trace", Level::TRACE),
                ("debug", Level::DEBUG),
                ("info", Level::INFO),
                ("warn", Level::WARN),
                ("error", Level::ERROR),
            ]),
            meaning: "Least severe level that is logged.",
            consequence: "POST /loglevel changes it too, and so does SIGHUP where no file is named that it reads: debug and back.",
        })?;
        let debug = rows.read(Row {
            flag: "debug",
            env: "DEBUG",
            default: "false",
            accepts: switch(),
            meaning: "Log level debug, and log lines from the kernel program.",
            consequence: "The kernel program is loaded with its log calls: slower.",
        })?;
        let latency_histograms = rows.read(Row {
            flag: "latency-histograms",
            env: "LATENCY_HISTOGRAMS",
            default: "true",
            accepts: switch(),
            meaning: "Measure how long NACKs, frames and backends take, for the histograms of /metrics.",
            consequence: "Up to 2 % of a hit in the kernel program. false: there are no histograms.",
        })?;
        let top_talkers = rows.read(Row {
            flag: "top-talkers",
            env: "TOP_TALKERS",
            default: "10",
            accepts: whole(0..=100),
            meaning: "Sources and flows that ask most: so many of each are shown on the status page, by top and by /metrics.",
            consequence: "Up to 1 % of a hit in the kernel program, and as many series of each metric. 0: they are not counted.",
        })?;
        let otlp = Otlp::read(rows)?;
        Ok(Self {
            instance: instance.map_or_else(|| host_name(rows), Ok)?,
            format,
            level: if debug { level.max(Level::DEBUG) } else { level },
            debug,
            latency_histograms,
            top_talkers,
            otlp,
        })
    }
}

impl Otlp {
    fn read(rows: &mut Rows<'_>) -> Read<Self> {
        Ok(Self {
            endpoint: rows.read(Row {
                flag: "otlp-endpoint",
                env: "OTLP_ENDPOINT",
                default: "",
                accepts: any("host:port, http:// or https://", hosts::collector),
                meaning: "OpenTelemetry collector (OTLP over gRPC).",
                consequence: "Metrics and traces are sent to it as well. https:// is held against the system's certificate authorities.",
            })?,
            interval: rows.read(Row {
                flag: "otlp-interval",
                env: "OTLP_INTERVAL",
                default: "30s",
                accepts: time(MILLISECOND, YEAR),
                meaning: "Time between exports.",
                consequence: "No effect without -otlp-endpoint.",
            })?,
            sampling: rows.read(Row {
                flag: "trace-sampling",
                env: "TRACE_SAMPLING",
                default: "0",
                accepts: any("0 to 1", values::share),
                meaning: "Share of the NACKs that the daemon handles that are traced.",
                consequence: "What XDP answers is not traced. No effect without -otlp-endpoint.",
            })?,
        })
    }
}

/// The last step of all: a host without a name does not keep a row from being read.
fn host_name(rows: &Rows<'_>) -> Read<String> {
    let name = nix::unistd::gethostname();
    name.map(|name| name.to_string_lossy().into_owned()).map_err(|error| {
        rows.refusal("instance", format!("the host name cannot be read ({error}): a name is accepted"))
    })
}
