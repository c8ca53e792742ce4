//! `/metrics`: the samples of the snapshot as Prometheus text.

use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{Encoder, TextEncoder};

use super::Snapshot;
use super::samples::{Kind, Sample, samples};

/// The content type of [`text`].
pub(crate) const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// The snapshot as Prometheus text.
pub fn text(snapshot: &Snapshot) -> Result<String, prometheus::Error> {
    let mut families: Vec<MetricFamily> = Vec::new();
    for sample in samples(snapshot) {
        // Series of one name stand together.
        let place = families.iter().position(|family| family.name() == sample.name).unwrap_or_else(|| {
            let mut family = MetricFamily::default();
            family.set_name(sample.name.to_owned());
            family.set_help(sample.help.to_owned());
            family.set_field_type(match sample.kind {
                Kind::Counter => MetricType::COUNTER,
                Kind::Gauge => MetricType::GAUGE,
            });
            families.push(family);
            families.len() - 1
        });
        families[place].mut_metric().push(metric(sample));
    }
    let mut out = Vec::new();
    TextEncoder::new().encode(&families, &mut out)?;
    String::from_utf8(out).map_err(|error| prometheus::Error::Msg(error.to_string()))
}

fn metric(sample: Sample) -> Metric {
    let mut metric = Metric::default();
    let label = |(name, value): (&str, String)| {
        let mut pair = LabelPair::default();
        pair.set_name(name.to_owned());
        pair.set_value(value);
        pair
    };
    metric.set_label(sample.labels.into_iter().map(label).collect());
    match sample.kind {
        Kind::Counter => {
            let mut counter = Counter::default();
            counter.set_value(sample.value);
            metric.set_counter(counter);
        }
        Kind::Gauge => {
            let mut gauge = Gauge::default();
            gauge.set_value(sample.value);
            metric.set_gauge(gauge);
        }
    }
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
