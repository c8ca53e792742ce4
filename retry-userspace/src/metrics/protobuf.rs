//! `/metrics` as delimited protobuf: what a Prometheus asks for that takes native histograms. The series are those of the text,
//! and each histogram has native buckets beside its classic ones.
//!
//! The messages are the part of `io.prometheus.client` that a counter, a gauge and a histogram need, with the numbers of its
//! `metrics.proto` (<https://github.com/prometheus/client_model>).

use prost::{Message, Oneof};

use super::Snapshot;
use super::histograms::{self, SCHEMA, Series};
use super::samples::{Kind, Sample};

/// The content type.
pub(crate) const CONTENT_TYPE: &str =
    "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited";
/// Values up to this are in the zero bucket, seconds: none is. That it is there tells a native histogram without values from a
/// classic one.
const ZERO_THRESHOLD: f64 = f64::MIN_POSITIVE;

/// All metrics of one name.
#[derive(Clone, PartialEq, Message)]
struct MetricFamily {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    help: String,
    #[prost(enumeration = "MetricType", tag = "3")]
    r#type: i32,
    #[prost(message, repeated, tag = "4")]
    metric: Vec<Metric>,
}

/// What a family is.
#[derive(Clone, Copy, Debug, Eq, PartialEq, prost::Enumeration)]
#[repr(i32)]
enum MetricType {
    /// It only grows.
    Counter = 0,
    /// It goes up and down.
    Gauge = 1,
    /// It has buckets.
    Histogram = 4,
}

/// One series.
#[derive(Clone, PartialEq, Message)]
struct Metric {
    #[prost(message, repeated, tag = "1")]
    label: Vec<LabelPair>,
    #[prost(oneof = "Value", tags = "2, 3, 7")]
    value: Option<Value>,
}

/// Its numbers. On the wire, a field of [`Metric`] per kind.
#[derive(Clone, PartialEq, Oneof)]
enum Value {
    #[prost(message, tag = "2")]
    Gauge(Number),
    #[prost(message, tag = "3")]
    Counter(Number),
    #[prost(message, tag = "7")]
    Histogram(Histogram),
}

/// `Gauge` and `Counter`, which are alike.
#[derive(Clone, Copy, PartialEq, Message)]
struct Number {
    #[prost(double, tag = "1")]
    value: f64,
}

/// A label.
#[derive(Clone, PartialEq, Message)]
struct LabelPair {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    value: String,
}

/// A histogram with classic and native buckets.
#[derive(Clone, PartialEq, Message)]
struct Histogram {
    #[prost(uint64, tag = "1")]
    sample_count: u64,
    #[prost(double, tag = "2")]
    sample_sum: f64,
    #[prost(message, repeated, tag = "3")]
    bucket: Vec<Bucket>,
    #[prost(sint32, tag = "5")]
    schema: i32,
    #[prost(double, tag = "6")]
    zero_threshold: f64,
    #[prost(uint64, tag = "7")]
    zero_count: u64,
    #[prost(message, repeated, tag = "12")]
    positive_span: Vec<BucketSpan>,
    /// Each the difference to the count before.
    #[prost(sint64, repeated, tag = "13")]
    positive_delta: Vec<i64>,
}

/// A classic bucket.
#[derive(Clone, Copy, PartialEq, Message)]
struct Bucket {
    /// With the counts of all buckets below.
    #[prost(uint64, tag = "1")]
    cumulative_count: u64,
    #[prost(double, tag = "2")]
    upper_bound: f64,
}

/// Native buckets that follow each other.
#[derive(Clone, Copy, PartialEq, Message)]
struct BucketSpan {
    /// Buckets between the span before and this one; of the first span, the number of its first bucket.
    #[prost(sint32, tag = "1")]
    offset: i32,
    #[prost(uint32, tag = "2")]
    length: u32,
}

/// The snapshot.
pub(super) fn encode(snapshot: &Snapshot) -> Vec<u8> {
    let mut out = Vec::new();
    for family in families(snapshot) {
        // The length, then the message: what `encoding=delimited` means.
        out.extend(family.encode_length_delimited_to_vec());
    }
    out
}

fn families(snapshot: &Snapshot) -> Vec<MetricFamily> {
    let numbers = super::samples::families(snapshot).into_iter().filter_map(|family| {
        let Sample { name, help, kind, .. } = family.first()?;
        let r#type = match kind {
            Kind::Counter => MetricType::Counter,
            Kind::Gauge => MetricType::Gauge,
        };
        let metric = family.iter().map(number).collect();
        Some(MetricFamily { name: (*name).to_owned(), help: (*help).to_owned(), r#type: r#type.into(), metric })
    });
    let histograms = snapshot.latency.iter().flat_map(histograms::families).map(|family| MetricFamily {
        name: family.name.to_owned(),
        help: family.help.to_owned(),
        r#type: MetricType::Histogram.into(),
        metric: family.series.iter().map(histogram).collect(),
    });
    numbers.chain(histograms).collect()
}

fn label(name: &str, value: &str) -> LabelPair {
    LabelPair { name: name.to_owned(), value: value.to_owned() }
}

fn number(sample: &Sample) -> Metric {
    let number = Number { value: sample.value };
    let value = match sample.kind {
        Kind::Counter => Value::Counter(number),
        Kind::Gauge => Value::Gauge(number),
    };
    Metric { label: sample.labels.iter().map(|(name, value)| label(name, value)).collect(), value: Some(value) }
}

fn histogram(series: &Series) -> Metric {
    let mut cumulative_count = 0;
    let classic = series.buckets().into_iter().map(|(upper_bound, count)| {
        cumulative_count += count;
        Bucket { cumulative_count, upper_bound }
    });
    let (positive_span, positive_delta) = sparse(&series.native());
    let histogram = Histogram {
        sample_count: series.histogram.count(),
        sample_sum: series.sum(),
        bucket: classic.collect(),
        schema: SCHEMA,
        zero_threshold: ZERO_THRESHOLD,
        zero_count: 0,
        positive_span,
        positive_delta,
    };
    Metric {
        label: series.labels.iter().map(|(name, value)| label(name, value)).collect(),
        value: Some(Value::Histogram(histogram)),
    }
}

/// The buckets as spans, and the differences of their counts.
fn sparse(buckets: &[(i32, u64)]) -> (Vec<BucketSpan>, Vec<i64>) {
    let (mut spans, mut deltas) = (Vec::<BucketSpan>::new(), Vec::new());
    let (mut next, mut before) = (0, 0);
    for (number, count) in buckets {
        match spans.last_mut() {
            Some(span) if *number == next => span.length += 1,
            _ => spans.push(BucketSpan { offset: number - next, length: 1 }),
        }
        next = number + 1;
        deltas.push(count.wrapping_sub(before).cast_signed());
        before = *count;
    }
    (spans, deltas)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use retry_common::latency::{self, Measured, upper_ns};

    use super::*;
    use crate::metrics::prometheus::{self, Format};
    use crate::metrics::snapshot::Latency;

    fn snapshot() -> Snapshot {
        let mut kernel = vec![latency::Histogram::default(); Measured::ALL.len()];
        for (at, ns) in [(0, 130), (0, 131), (0, 95_000), (9, 400), (9, 30_000_000_000)] {
            kernel[at].add(ns, 3);
        }
        Snapshot { latency: Some(Latency { kernel, ..Latency::default() }), ..Snapshot::complete() }
    }

    fn decoded(snapshot: &Snapshot) -> Vec<MetricFamily> {
        let bytes = prometheus::encode(snapshot, Format::Protobuf).expect("bytes");
        let mut rest = bytes.as_slice();
        let mut families = Vec::new();
        while !rest.is_empty() {
            families.push(MetricFamily::decode_length_delimited(&mut rest).expect("a message"));
        }
        families
    }

    /// Name and labels of each series, and its value; a scraper that changes the format finds the same.
    #[test]
    fn the_series_are_those_of_the_text() {
        let mut found = BTreeMap::new();
        let mut put = |name: String, labels: &[LabelPair], more: Option<(&str, String)>, value: f64| {
            let labels = labels.iter().map(|one| (one.name.clone(), one.value.clone()));
            let mut labels: Vec<_> = labels.chain(more.map(|(name, value)| (name.to_owned(), value))).collect();
            labels.sort();
            assert_eq!(found.insert((name.clone(), labels), value), None, "{name} twice");
        };
        for family in decoded(&snapshot()) {
            for Metric { label, value } in &family.metric {
                match value.as_ref().expect("a value") {
                    Value::Gauge(number) | Value::Counter(number) => {
                        put(family.name.clone(), label, None, number.value)
                    }
                    Value::Histogram(histogram) => {
                        for bucket in &histogram.bucket {
                            let le = Some(("le", bucket.upper_bound.to_string()));
                            put(format!("{}_bucket", family.name), label, le, bucket.cumulative_count as f64);
                        }
                        put(format!("{}_sum", family.name), label, None, histogram.sample_sum);
                        put(format!("{}_count", family.name), label, None, histogram.sample_count as f64);
                    }
                }
            }
        }
        let text = prometheus::encode(&snapshot(), Format::Text).expect("text");
        let text = String::from_utf8(text).expect("text");
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (series, value) = line.rsplit_once(' ').expect("series and value");
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let label = |label: &str| {
                let (name, value) = label.split_once('=').expect("a label");
                let value = value.trim_matches('"');
                let bound = (name == "le").then(|| value.parse::<f64>().expect("a number").to_string());
                (name.to_owned(), bound.unwrap_or_else(|| value.to_owned()))
            };
            let labels = labels.trim_end_matches('}').split("\",").filter(|label| !label.is_empty());
            let mut labels: Vec<_> = labels.map(label).collect();
            labels.sort();
            let seen = found.remove(&(name.to_owned(), labels)).unwrap_or_else(|| panic!("{line} is missing"));
            assert_eq!(seen, value.parse::<f64>().expect("a number"), "{line}");
        }
        assert!(found.is_empty(), "not in the text: {found:?}");
    }

    /// Bounds and counts of the native buckets, as a reader of the message finds them.
    fn native(histogram: &Histogram) -> Vec<(i32, u64)> {
        let (mut number, mut count, mut buckets) = (0, 0i64, Vec::new());
        let mut deltas = histogram.positive_delta.iter();
        for span in &histogram.positive_span {
            number += span.offset;
            for _ in 0..span.length {
                count += deltas.next().expect("a delta per bucket");
                buckets.push((number, count.try_into().expect("no negative count")));
                number += 1;
            }
        }
        assert_eq!(deltas.next(), None);
        buckets
    }

    #[test]
    fn native_buckets_have_every_value_of_the_classic_ones() {
        let mut with_values = 0;
        for family in decoded(&snapshot()) {
            for Metric { value, .. } in family.metric {
                let Some(Value::Histogram(histogram)) = value else { continue };
                let buckets = native(&histogram);
                assert_eq!(buckets.iter().map(|(_, count)| count).sum::<u64>(), histogram.sample_count);
                assert_eq!(histogram.bucket.last().map(|last| last.cumulative_count), Some(histogram.sample_count));
                // One without values is a native histogram all the same.
                assert!(histogram.zero_threshold > 0.0 && histogram.schema == SCHEMA);
                with_values += usize::from(!buckets.is_empty());
            }
        }
        assert_eq!(with_values, 2);
    }

    /// Buckets beside each other, with a gap, and below one second: the example of Prometheus' own documentation of spans.
    #[test]
    fn spans_are_gaps_and_lengths() {
        let (spans, deltas) = sparse(&[(-3, 3), (-2, 5), (1, 1), (2, 0), (3, 4)]);
        let spans: Vec<_> = spans.iter().map(|span| (span.offset, span.length)).collect();
        assert_eq!((spans, deltas), (vec![(-3, 2), (2, 3)], vec![3, 2, -4, -1, 4]));
        assert_eq!(sparse(&[]), (vec![], vec![]));
    }

    /// Any place in a native bucket is within the bound that docs/metrics.md states of any time that is counted there.
    #[test]
    fn a_time_is_within_eleven_percent_of_its_native_bucket() {
        let mut worst = 0.0_f64;
        let mut before = None;
        for bucket in 0..latency::BUCKETS {
            let mut one = latency::Histogram::default();
            one.counts[bucket] = 1;
            let [(number, 1)] = histograms::native(&one)[..] else { panic!("one bucket with one value") };
            assert!(before.is_none_or(|before| before < number), "{bucket} shares {number} with the bucket before");
            before = Some(number);
            let bound = |number: i32| 1e9 * (f64::from(number) / f64::from(1 << SCHEMA)).exp2();
            let longest = upper_ns(bucket) as f64;
            // Times are whole nanoseconds.
            let shortest = if bucket == 0 { longest } else { (upper_ns(bucket - 1) + 1) as f64 };
            for time in [shortest, longest] {
                for told in [bound(number - 1), bound(number)] {
                    worst = worst.max((told / time - 1.0).abs());
                }
            }
        }
        assert!((0.1..0.11).contains(&worst), "{worst}");
    }
}
