//! Every number that is shown, with its name and labels: once, for every exporter. Those of counters are
//! `retry_common::counter`'s.

use std::collections::BTreeMap;

use retry_common::abi::Sent;
use retry_common::counter::{Counter, Side};
use retry_common::wire::frame::Class;

use super::process::Process;
use super::{COMMIT, RINGS, Snapshot};

/// What a number is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// It only grows.
    Counter,
    /// It goes up and down.
    Gauge,
}

/// One number.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The metric's name.
    pub name: &'static str,
    /// The metric's help line.
    pub help: &'static str,
    /// What it is.
    pub kind: Kind,
    /// Names and values of its labels.
    pub labels: Vec<(&'static str, String)>,
    /// The number: exact up to 2^53.
    pub value: f64,
}

/// All numbers of a snapshot; series of one name stand together, except those of counters with several labels.
#[expect(clippy::cast_precision_loss, reason = "the numbers of both formats are doubles: exact up to 2^53")]
pub fn samples(snapshot: &Snapshot) -> Vec<Sample> {
    let mut all = Vec::with_capacity(2 * Counter::ALL.len());
    for counter in Counter::ALL {
        let series = counter.series();
        let (user, kernel) = (snapshot.user.get(*counter), snapshot.kernel.get(*counter));
        let mut push = |path: Option<&str>, value: u64| {
            let own = series.labels.iter().map(|(name, value)| (*name, (*value).to_owned()));
            let labels = own.chain(path.map(|path| ("path", path.to_owned()))).collect();
            all.push(Sample {
                name: series.name,
                help: counter.help(),
                kind: Kind::Counter,
                labels,
                value: value as f64,
            });
        };
        match series.side {
            Side::User => push(None, user),
            Side::Kernel => push(None, kernel),
            Side::Both => {
                push(Some("xdp"), kernel);
                push(Some("user"), user);
            }
        }
    }
    let mut push = |kind, name, help, labels: Vec<(&'static str, String)>, value: f64| {
        all.push(Sample { name, help, kind, labels, value });
    };
    let sources = snapshot.stored.sources.iter().map(|(source, frames)| (source.to_string(), *frames));
    for (source, frames) in sources.chain([("other".to_owned(), snapshot.stored.other)]) {
        let help = "Frames stored in the frame log, by the IPv6 address of the source that sent them first; `other` has those of further \
                    sources and of sources that are not known.";
        push(Kind::Counter, "bre_cache_stored_total", help, vec![("source", source)], frames as f64);
    }
    type Of = fn(&Sent) -> u64;
    let delivered: [(_, _, Of); 2] = [
        ("bre_xdp_xmit_packets_total", "Packets of the kernel program that the interface's driver took.", |sent| {
            sent.packets
        }),
        (
            "bre_xdp_xmit_drops_total",
            "Packets of the kernel program that the interface's driver did not take: counted as sent, and lost.",
            |sent| sent.drops,
        ),
    ];
    for (name, help, of) in delivered {
        for (interface, sent) in &snapshot.delivered {
            push(Kind::Counter, name, help, vec![("interface", interface.clone())], of(sent) as f64);
        }
    }
    let mut gauge = |name, help, labels: &[(&'static str, &str)], value: f64| {
        let labels = labels.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        push(Kind::Gauge, name, help, labels, value);
    };
    gauge("bre_cache_size", "Frames that can be found in the frame log.", &[], snapshot.frames as f64);
    let lanes = || RINGS.iter().zip(&snapshot.lanes);
    for (ring, lane) in lanes() {
        gauge(
            "bre_cache_oldest_age_seconds",
            "Age of the oldest frame still held: a ring shorter than the TTL shows here.",
            &[("ring", ring)],
            lane.oldest_age_ms as f64 / 1e3,
        );
    }
    for (ring, lane) in lanes() {
        let help = "Bytes between the oldest and the newest record.";
        gauge("bre_cache_ring_used_bytes", help, &[("ring", ring)], lane.used_bytes as f64);
    }
    for (ring, lane) in lanes() {
        gauge("bre_cache_ring_size_bytes", "Bytes of the ring.", &[("ring", ring)], lane.size_bytes as f64);
    }
    let classes = || Class::ALL.iter().zip(&snapshot.classes);
    for (class, seen) in classes() {
        let help = "Life of the frames of the class, as the settings give it.";
        gauge("bre_cache_ttl_seconds", help, &[("class", class.name())], seen.life.as_secs_f64());
    }
    for (class, seen) in classes() {
        let help = "Age of the oldest frame of the class that is still held, to within a hundredth of its life; 0 without any.";
        gauge("bre_cache_class_oldest_age_seconds", help, &[("class", class.name())], seen.oldest_age.as_secs_f64());
    }
    for talker in snapshot.talkers.iter().flat_map(|top| &top.sources) {
        let help = "NACKs of the last minute from the sources that asked most, -top-talkers of them: an estimate, see /v1/status.";
        gauge("bre_top_source_nacks", help, &[("source", &talker.name)], talker.asked as f64);
    }
    for talker in snapshot.talkers.iter().flat_map(|top| &top.flows) {
        let help = "NACKs of the last minute for the flows that were asked for most, -top-talkers of them, by HashKey: an estimate, \
                    see /v1/status.";
        gauge("bre_top_flow_nacks", help, &[("flow", &talker.name)], talker.asked as f64);
    }
    for source in &snapshot.own_sources {
        let help = "1, with an address that multicast repairs leave from.";
        gauge("bre_own_source_info", help, &[("source", &source.to_string())], 1.0);
    }
    if let Some(store) = &snapshot.store {
        let up = f64::from(u8::from(store.up));
        gauge("bre_store_up", "1 while the shared store is connected and answers.", &[], up);
        let queued = store.queued as f64;
        gauge("bre_store_queue_frames", "Frames that wait to be written to the shared store.", &[], queued);
    }
    for upstream in &snapshot.upstreams {
        let up = f64::from(u8::from(upstream.up));
        let help = "1 while the upstream endpoint is asked with the others, 0 while it is asked last.";
        gauge("bre_upstream_up", help, &[("upstream", &upstream.name)], up);
    }
    for upstream in &snapshot.upstreams {
        if let Some(rtt) = upstream.rtt {
            let help = "Smoothed round-trip time to the upstream endpoint.";
            gauge("bre_upstream_rtt_seconds", help, &[("upstream", &upstream.name)], rtt.as_secs_f64());
        }
    }
    let ssm = [
        (
            "bre_known_listeners",
            "Known listeners: those that are served although others have used up the limit of a frame.",
            snapshot.known_listeners,
        ),
        ("bre_ssm_sources", "Sources that the data groups are joined from; 0 with any source.", snapshot.ssm_sources),
        ("bre_ingress_sockets", "Sockets that frames are received on.", snapshot.ingress_sockets),
    ];
    for (name, help, value) in ssm {
        gauge(name, help, &[], value as f64);
    }
    let ready = f64::from(u8::from(snapshot.is_ready()));
    gauge("bre_ready", "1 while /readyz answers 200; at 0 it says why.", &[], ready);
    gauge(
        "bre_xdp_mode",
        "1 for the mode in force, with the reason for it; the log and /readyz tell it in full.",
        &[("mode", snapshot.xdp_mode), ("reason", snapshot.xdp_reason.name())],
        1.0,
    );
    gauge(
        "bre_config_last_success_timestamp_seconds",
        "When settings were last read and could stand, at the start or since, in seconds of Unix time.",
        &[],
        snapshot.settings_read_s as f64,
    );
    gauge(
        "bre_start_mode",
        "1 for what the frame log held at the start: nothing, or the frames of an earlier daemon.",
        &[("mode", snapshot.start_mode)],
        1.0,
    );
    let host: BTreeMap<&'static str, &str> = snapshot.host.labels().into();
    let host: Vec<(&'static str, &str)> = host.into_iter().collect();
    gauge("bre_host_info", "1, with what this host and this daemon are.", &host, 1.0);
    let build = [("version", env!("CARGO_PKG_VERSION")), ("commit", COMMIT)];
    gauge("bre_build_info", "1, with the version and the commit that the daemon was built from.", &build, 1.0);
    if let Some(process) = &snapshot.process {
        all.extend(of_process(process));
    }
    all
}

/// As [`samples`], those of one name together.
pub(crate) fn families(snapshot: &Snapshot) -> Vec<Vec<Sample>> {
    let mut families: Vec<Vec<Sample>> = Vec::new();
    for sample in samples(snapshot) {
        match families.iter_mut().find(|family| family.iter().any(|one| one.name == sample.name)) {
            Some(family) => family.push(sample),
            None => families.push(vec![sample]),
        }
    }
    families
}

/// The metrics that Prometheus client libraries show of their process, under their names.
#[expect(clippy::cast_precision_loss, reason = "bytes and descriptors: exact up to 2^53")]
fn of_process(process: &Process) -> [Sample; 7] {
    let sample = |kind, name, help, value| Sample { name, help, kind, labels: Vec::new(), value };
    [
        sample(
            Kind::Counter,
            "process_cpu_seconds_total",
            "CPU time of the daemon, user and system.",
            process.cpu_seconds,
        ),
        sample(Kind::Gauge, "process_open_fds", "Open file descriptors.", process.open_fds as f64),
        sample(Kind::Gauge, "process_max_fds", "Most file descriptors that may be open.", process.max_fds as f64),
        sample(Kind::Gauge, "process_virtual_memory_bytes", "Address space.", process.virtual_bytes as f64),
        sample(
            Kind::Gauge,
            "process_virtual_memory_max_bytes",
            "Largest address space; 2^64 without a limit.",
            process.virtual_max_bytes as f64,
        ),
        sample(Kind::Gauge, "process_resident_memory_bytes", "Resident memory.", process.resident_bytes as f64),
        sample(
            Kind::Gauge,
            "process_start_time_seconds",
            "Start of the daemon, seconds since 1970.",
            process.start_seconds,
        ),
    ]
}
