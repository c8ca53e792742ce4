//! What `/v1/status` of a daemon says, as far as it is shown here. What a daemon of another version leaves out is empty.

use std::collections::BTreeMap;

use serde::Deserialize;

/// The daemon at one time.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Status {
    pub(super) instance: String,
    pub(super) host: String,
    pub(super) version: String,
    pub(super) status: String,
    pub(super) uptime_seconds: f64,
    pub(super) interfaces: Vec<Interface>,
    pub(super) nacks: Vec<Counted>,
    pub(super) answers: Vec<Counted>,
    pub(super) latency: Option<Latency>,
    pub(super) talkers: Option<Talkers>,
    pub(super) frames: u64,
    pub(super) classes: Vec<Class>,
    pub(super) redis: Option<Redis>,
    pub(super) upstreams: Vec<Upstream>,
    pub(super) attention: Vec<Attention>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Interface {
    pub(super) name: String,
    pub(super) roles: Vec<String>,
    pub(super) mode: String,
    pub(super) reason: String,
    pub(super) sent: Option<u64>,
    pub(super) lost: Option<u64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Counted {
    pub(super) name: String,
    pub(super) kernel: u64,
    pub(super) daemon: u64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Latency {
    pub(super) window_seconds: f64,
    pub(super) p50_seconds: Option<f64>,
    pub(super) p99_seconds: Option<f64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Talkers {
    pub(super) window_seconds: f64,
    pub(super) sources: Vec<Talker>,
    pub(super) flows: Vec<Talker>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Talker {
    pub(super) name: String,
    pub(super) asked: u64,
    pub(super) error: u64,
    pub(super) answered: u64,
    pub(super) missed: u64,
    pub(super) refused: BTreeMap<String, u64>,
    pub(super) bytes_out: u64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Class {
    pub(super) class: String,
    pub(super) ttl_seconds: f64,
    pub(super) oldest_age_seconds: f64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Redis {
    pub(super) up: bool,
    pub(super) reason: Option<String>,
    pub(super) queued_frames: u64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Upstream {
    pub(super) name: String,
    pub(super) up: bool,
    pub(super) rtt_seconds: Option<f64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Attention {
    pub(super) what: String,
    pub(super) section: String,
}
