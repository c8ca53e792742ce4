//! `/metrics`: the snapshot as Prometheus text. Names and labels of counters are `retry_common::counter`'s.

use prometheus::proto::{Counter as CounterProto, Gauge, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{Encoder, TextEncoder};
use retry_common::counter::{Counter, Side};

use super::Snapshot;

/// Names of the lanes of the frame log, in their order.
const RINGS: [&str; 2] = ["short", "long"];

/// The content type of [`text`].
pub(super) const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// The snapshot as Prometheus text.
pub fn text(snapshot: &Snapshot) -> Result<String, prometheus::Error> {
    let mut families = Vec::new();
    for counter in Counter::ALL {
        let series = counter.series();
        let (user, kernel) = (snapshot.user.get(*counter), snapshot.kernel.get(*counter));
        let family = family(&mut families, series.name, series.help, MetricType::COUNTER);
        match series.side {
            Side::User => family.mut_metric().push(count(series.labels, None, user)),
            Side::Kernel => family.mut_metric().push(count(series.labels, None, kernel)),
            Side::Both => {
                family.mut_metric().push(count(series.labels, Some("xdp"), kernel));
                family.mut_metric().push(count(series.labels, Some("user"), user));
            }
        }
    }
    family(&mut families, "bre_beacon_adverts_sent_total", "ADVERT beacons sent.", MetricType::COUNTER)
        .mut_metric()
        .push(count(&[], None, snapshot.adverts_sent));

    #[expect(clippy::cast_precision_loss, reason = "a gauge is a double: exact up to 2^53")]
    let mut gauge_of = |name: &str, help: &str, labels: &[(&str, &str)], value: u64, scale: f64| {
        family(&mut families, name, help, MetricType::GAUGE).mut_metric().push(gauge(labels, value as f64 * scale));
    };
    gauge_of("bre_cache_size", "Frames that can be found in the frame log.", &[], snapshot.frames, 1.0);
    for (ring, lane) in RINGS.iter().zip(&snapshot.lanes) {
        let labels = [("ring", *ring)];
        gauge_of(
            "bre_cache_oldest_age_seconds",
            "Age of the oldest frame still held: a ring shorter than the TTL shows here.",
            &labels,
            lane.oldest_age_ms,
            0.001,
        );
        gauge_of(
            "bre_cache_ring_used_bytes",
            "Bytes between the oldest and the newest record.",
            &labels,
            lane.used_bytes,
            1.0,
        );
        gauge_of("bre_cache_ring_size_bytes", "Bytes of the ring.", &labels, lane.size_bytes, 1.0);
    }
    gauge_of(
        "bre_xdp_mode",
        "1 for the mode in force, with the reason for it.",
        &[("mode", snapshot.xdp_mode), ("reason", &snapshot.xdp_reason)],
        1,
        1.0,
    );

    let mut out = Vec::new();
    TextEncoder::new().encode(&families, &mut out)?;
    String::from_utf8(out).map_err(|error| prometheus::Error::Msg(error.to_string()))
}

/// The family of that name, made if need be: series of one name stand together.
fn family<'a>(families: &'a mut Vec<MetricFamily>, name: &str, help: &str, kind: MetricType) -> &'a mut MetricFamily {
    let place = families.iter().position(|family| family.name() == name).unwrap_or_else(|| {
        let mut family = MetricFamily::default();
        family.set_name(name.to_owned());
        family.set_help(help.to_owned());
        family.set_field_type(kind);
        families.push(family);
        families.len() - 1
    });
    &mut families[place]
}

#[expect(clippy::cast_precision_loss, reason = "the format's numbers are doubles: exact up to 2^53")]
fn count(labels: &[(&str, &str)], path: Option<&str>, value: u64) -> Metric {
    let mut metric = labelled(labels, path);
    let mut counter = CounterProto::default();
    counter.set_value(value as f64);
    metric.set_counter(counter);
    metric
}

fn gauge(labels: &[(&str, &str)], value: f64) -> Metric {
    let mut metric = labelled(labels, None);
    let mut gauge = Gauge::default();
    gauge.set_value(value);
    metric.set_gauge(gauge);
    metric
}

fn labelled(labels: &[(&str, &str)], path: Option<&str>) -> Metric {
    let mut metric = Metric::default();
    metric.set_label(
        labels
            .iter()
            .copied()
            .chain(path.map(|path| ("path", path)))
            .map(|(name, value)| {
                let mut pair = LabelPair::default();
                pair.set_name(name.to_owned());
                pair.set_value(value.to_owned());
                pair
            })
            .collect(),
    );
    metric
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every name and label set of the operator's surface that exists by now, and each only once.
    #[test]
    fn the_surface_is_there() {
        let text = text(&Snapshot::default()).unwrap();
        for name in [
            "bre_frames_received_total",
            "bre_frames_dropped_total{reason=\"decode_error\"}",
            "bre_frames_cached_total",
            "bre_cache_stored_total{source=\"multicast\"}",
            "bre_cache_size",
            "bre_nack_requests_total{path=\"xdp\"}",
            "bre_nack_requests_total{path=\"user\"}",
            "bre_cache_hits_total{path=\"xdp\"}",
            "bre_cache_misses_total{path=\"user\"}",
            "bre_retransmits_total{path=\"user\"}",
            "bre_unicast_retransmits_total{path=\"user\"}",
            "bre_retransmit_dedup_total{path=\"user\"}",
            "bre_responses_sent_total{type=\"ack\",path=\"xdp\"}",
            "bre_responses_sent_total{type=\"miss\",path=\"xdp\"}",
            "bre_responses_sent_total{type=\"throttled\",path=\"xdp\"}",
            "bre_response_send_errors_total{type=\"ack\",path=\"user\"}",
            "bre_rate_limit_drops_total{level=\"ip\",path=\"xdp\"}",
            "bre_rate_limit_drops_total{level=\"chain\",path=\"xdp\"}",
            "bre_rate_limit_drops_total{level=\"sequence\",path=\"xdp\"}",
            "bre_rate_limit_drops_total{level=\"group\",path=\"xdp\"}",
            "bre_beacon_adverts_sent_total",
            "bre_cache_oldest_age_seconds{ring=\"short\"}",
            "bre_xdp_mode{mode=\"\",reason=\"\"}",
        ] {
            let lines = text.lines().filter(|line| line.starts_with(&format!("{name} "))).count();
            assert_eq!(lines, 1, "{name} in\n{text}");
        }
        for line in text.lines().filter(|line| line.starts_with("# TYPE")) {
            assert_eq!(text.matches(line).count(), 1, "{line}");
        }
    }
}
