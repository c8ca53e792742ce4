//! `/metrics`: the samples of the snapshot as Prometheus text, or as OpenMetrics text or protobuf for a scraper that asks for it.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet, prometheus_text, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::histograms::{Family, families};
use super::samples::{Kind, Sample};
use super::{Snapshot, protobuf};

/// A format of `/metrics`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Format {
    /// The Prometheus text format, version 0.0.4.
    Text,
    /// OpenMetrics text, version 1.0.0. Names, labels and values are those of [`Format::Text`].
    OpenMetrics,
    /// Delimited messages `io.prometheus.client.MetricFamily`. The same, and native histograms beside the classic ones.
    Protobuf,
}

/// A media range of an `Accept` header.
struct Range<'a> {
    media: &'a str,
    parameters: Vec<(&'a str, &'a str)>,
}

impl<'a> Range<'a> {
    fn of(text: &'a str) -> Self {
        let mut parts = text.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default();
        let parameter = |part: &'a str| {
            let (name, value) = part.split_once('=')?;
            Some((name.trim(), value.trim().trim_matches('"')))
        };
        Self { media, parameters: parts.filter_map(parameter).collect() }
    }

    fn get(&self, name: &str) -> Option<&'a str> {
        self.parameters.iter().find(|(one, _)| one.eq_ignore_ascii_case(name)).map(|(_, value)| *value)
    }

    /// How much it is wished for, 0 to 1; 0 for what is no number.
    fn quality(&self) -> f32 {
        self.get("q").map_or(1.0, |q| q.parse().unwrap_or_default())
    }
}

impl Format {
    /// The format that a request with this `Accept` header gets (RFC 9110, section 12.5.1): the one with the largest quality, and
    /// of two with the same one, protobuf before OpenMetrics before [`Format::Text`]. Where none is named, it is [`Format::Text`].
    #[must_use]
    pub fn accepted(accept: &str) -> Self {
        let ranges: Vec<Range<'_>> = accept.split(',').map(Range::of).collect();
        let quality = |format: Self| {
            let wanted = ranges.iter().filter(|range| format.is_meant(range));
            wanted.map(Range::quality).fold(0.0_f32, f32::max)
        };
        let mut best = (Self::Text, quality(Self::Text));
        for format in [Self::OpenMetrics, Self::Protobuf] {
            let quality = quality(format);
            if quality > 0.0 && quality >= best.1 {
                best = (format, quality);
            }
        }
        best.0
    }

    fn is_meant(self, range: &Range<'_>) -> bool {
        let named = |media: &str| range.media.eq_ignore_ascii_case(media);
        match self {
            Self::Text => named("text/plain"),
            Self::OpenMetrics => named("application/openmetrics-text"),
            Self::Protobuf => {
                named("application/vnd.google.protobuf")
                    && range.get("proto") == Some("io.prometheus.client.MetricFamily")
                    && range.get("encoding") == Some("delimited")
            }
        }
    }

    /// The content type.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Text => prometheus_text::CONTENT_TYPE,
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Protobuf => protobuf::CONTENT_TYPE,
        }
    }
}

/// The snapshot in a format.
///
/// # Errors
/// The encoder refuses a name or a value.
pub fn encode(snapshot: &Snapshot, format: Format) -> Result<Vec<u8>, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Families::of(snapshot)));
    registry.register_collector(Box::new(Histograms(snapshot.latency.as_ref().map(families).unwrap_or_default())));
    let mut out = String::new();
    match format {
        Format::Text => prometheus_text::encode(&mut out, &registry)?,
        Format::OpenMetrics => text::encode(&mut out, &registry)?,
        Format::Protobuf => return Ok(protobuf::encode(snapshot)),
    }
    Ok(out.into_bytes())
}

/// The samples, those of one name together.
#[derive(Debug)]
struct Families(Vec<Vec<Sample>>);

impl Families {
    fn of(snapshot: &Snapshot) -> Self {
        Self(super::samples::families(snapshot))
    }
}

impl Collector for Families {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for family in &self.0 {
            let Some(Sample { name, help, kind, .. }) = family.first() else { continue };
            let (name, kind) = match kind {
                // The encoder adds the suffix, where the format has it.
                Kind::Counter => (name.strip_suffix("_total").unwrap_or(name), MetricType::Counter),
                Kind::Gauge => (*name, MetricType::Gauge),
            };
            let mut metric = encoder.encode_descriptor(name, help, None, kind)?;
            for Sample { labels, kind, value, .. } in family {
                let mut one = metric.encode_family(labels)?;
                match (kind, whole(*value)) {
                    (Kind::Counter, Some(whole)) => one.encode_counter::<NoLabelSet, _, u64>(&whole, None)?,
                    (Kind::Counter, None) => one.encode_counter::<NoLabelSet, _, u64>(value, None)?,
                    (Kind::Gauge, Some(whole)) => one.encode_gauge(&whole)?,
                    (Kind::Gauge, None) => one.encode_gauge(value)?,
                }
            }
        }
        Ok(())
    }
}

/// The histograms.
#[derive(Debug)]
struct Histograms(Vec<Family>);

impl Collector for Histograms {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for Family { name, help, series } in &self.0 {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
            for one in series {
                let buckets = one.buckets();
                metric.encode_family(&one.labels)?.encode_histogram::<NoLabelSet>(
                    one.sum(),
                    one.histogram.count(),
                    &buckets,
                    None,
                )?;
            }
        }
        Ok(())
    }
}

/// The value as a whole number, if it is one that a double holds exactly.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole, and between 0 and 2^53")]
fn whole(value: f64) -> Option<u64> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    (value.fract() == 0.0 && (0.0..EXACT).contains(&value)).then_some(value as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(format: Format) -> String {
        String::from_utf8(encode(&Snapshot::complete(), format).expect("text")).expect("UTF-8")
    }

    fn text() -> String {
        encoded(Format::Text)
    }

    /// Every name and label set of the operator's surface that exists by now, and each only once.
    #[test]
    fn the_surface_is_there() {
        let text = text();
        for name in [
            "bre_frames_received_total",
            "bre_frames_dropped_total{reason=\"decode_error\"}",
            "bre_frames_cached_total",
            "bre_cache_stored_total{source=\"::\"}",
            "bre_cache_stored_total{source=\"other\"}",
            "bre_cache_stored_by_total{via=\"multicast\"}",
            "bre_cache_size",
            "bre_cache_ttl_seconds{class=\"tx\"}",
            "bre_nack_requests_total{path=\"xdp\"}",
            "bre_nack_requests_total{path=\"user\"}",
            "bre_nack_dropped_total{reason=\"socket_overflow\"}",
            "bre_cache_hits_total{path=\"xdp\"}",
            "bre_cache_misses_total{path=\"user\"}",
            "bre_cache_evicted_total{reason=\"lap\",ring=\"short\"}",
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
            "bre_proxy_requests_total",
            "bre_proxy_nacks_total",
            "bre_proxy_failed_total{reason=\"exhausted\",last=\"miss\"}",
            "bre_beacon_adverts_sent_total",
            "bre_cache_oldest_age_seconds{ring=\"short\"}",
            "bre_own_source_info{source=\"::\"}",
            "bre_xdp_mode{mode=\"\",reason=\"asked\"}",
            "bre_start_mode{mode=\"\"}",
            "process_cpu_seconds_total",
            "process_resident_memory_bytes",
        ] {
            let lines = text.lines().filter(|line| line.starts_with(&format!("{name} "))).count();
            assert_eq!(lines, 1, "{name} in\n{text}");
        }
        for line in text.lines().filter(|line| line.starts_with("# TYPE")) {
            assert_eq!(text.matches(line).count(), 1, "{line}");
        }
    }

    /// A scraper that changes the format finds the same series with the same values.
    #[test]
    fn both_formats_have_the_same_series() {
        // The bounds of buckets are written otherwise in each, and stand elsewhere.
        let line = |line: &str| -> (String, Vec<String>, String) {
            let (series, value) = line.rsplit_once(' ').expect("series and value");
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let label =
                |label: &str| match label.strip_prefix("le=\"").map(|le| le.trim_end_matches('"').parse::<f64>()) {
                    Some(bound) => format!("le={}", bound.expect("a number")),
                    None => label.to_owned(),
                };
            let mut labels: Vec<String> = labels.trim_end_matches('}').split(',').map(label).collect();
            labels.sort();
            (name.to_owned(), labels, value.to_owned())
        };
        let series = |text: &str| {
            let mut all: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).map(line).collect();
            all.sort();
            all
        };
        let open = encoded(Format::OpenMetrics);
        assert_eq!(series(&open), series(&text()));
        assert!(open.ends_with("# EOF\n"), "{open}");
        // There a counter's family is named without the suffix.
        assert!(open.contains("# TYPE bre_cache_hits counter\n"), "{open}");
        assert!(text().contains("# TYPE bre_cache_hits_total counter\n"));
    }

    #[test]
    fn the_format_is_the_one_that_is_preferred() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,\
                          text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        // Prometheus 2.42 with its feature native-histograms, and Prometheus 3 without it.
        let native = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited,\
                      application/openmetrics-text;version=1.0.0;q=0.8,application/openmetrics-text;version=0.0.1;q=0.75,\
                      text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        let third = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
                     application/vnd.google.protobuf; proto=\"io.prometheus.client.MetricFamily\"; encoding=delimited; q=0.5,\
                     text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,*/*;q=0.1";
        for (accept, format) in [
            (prometheus, Format::OpenMetrics),
            ("application/openmetrics-text; version=1.0.0", Format::OpenMetrics),
            ("", Format::Text),
            ("*/*", Format::Text),
            ("text/plain;version=0.0.4;q=0.5,application/openmetrics-text;q=0.4", Format::Text),
            ("application/openmetrics-text;q=0", Format::Text),
            (native, Format::Protobuf),
            (third, Format::OpenMetrics),
            (
                "text/plain,application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0",
                Format::Text,
            ),
            (
                "text/plain;q=0.1,application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=text",
                Format::Text,
            ),
            (
                "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;q=0.7,text/plain;q=0.3",
                Format::Text,
            ),
        ] {
            assert_eq!(Format::accepted(accept), format, "{accept}");
        }
    }

    #[test]
    fn values_are_written_as_they_are() {
        for (value, written) in [(0.0, Some(0)), (1e6, Some(1_000_000)), (0.5, None), (-1.0, None), (f64::NAN, None)] {
            assert_eq!(whole(value), written);
        }
    }
}
