//! Native histograms: a Prometheus that takes them asks for protobuf, and stores what the kernel program counted.

use std::time::Duration;

use retry_common::{key::FrameKey, latency::Measured};
use retry_testbed::{
    daemon::{Daemon, Metrics},
    net::fabric::Fabric,
    peers::answer::nack,
    scene::{ask, asker, binary, eventually, flags, is_root, two_hosts},
};
use retry_userspace::parts::datapath::pinned;

use super::prometheus::{Prometheus, Watch};

const MISSES: u32 = 300;
/// Width of a native bucket of schema 4: 2^(1/16) - 1.
const WIDTH: f64 = 0.0443;
/// The histogram of misses.
const SERIES: &str = "bre_nack_duration_seconds{verdict=\"miss\"}";

/// The one value that an expression returns.
fn value(prometheus: &Prometheus<'_>, expression: &str) -> Option<f64> {
    prometheus.query(expression).first()?["value"][1].as_str()?.parse().ok()
}

/// Quantiles from the native histogram are those of the kernel program's own one to within a native bucket (4.4 %), and lie in
/// the classic bucket that the text has for the same quantile.
#[test]
fn native_histograms_have_the_quantiles_that_were_measured() {
    if !is_root("native_histograms_have_the_quantiles_that_were_measured") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let mut watch = Watch::new();
    watch.join(endpoint, "native");
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags("native", &["-metrics-addr", ":9400"]));
    let daemon = daemon.expect("a daemon");
    let directory = tempfile::tempdir().expect("a directory");
    let prometheus = watch.start(directory.path(), &["--enable-feature=native-histograms"]);
    let socket = asker(client);
    for seq_num in 0..MISSES {
        let missing = nack(FrameKey::new(0xdead, seq_num.into()));
        assert_eq!(ask(&socket, endpoint.nack_address(), &missing, 1).len(), 1);
        // Denser ones are not all measured.
        std::thread::sleep(Duration::from_millis(1));
    }
    let misses = f64::from(MISSES);
    eventually("every miss is scraped", || value(&prometheus, &format!("histogram_count({SERIES})")) == Some(misses));

    // It has no classic buckets: what it asked for was protobuf. What is no histogram came the same way.
    assert_eq!(prometheus.query("bre_nack_duration_seconds_bucket"), Vec::<serde_json::Value>::new());
    assert_eq!(value(&prometheus, "bre_cache_misses_total{path=\"xdp\"}"), Some(misses));
    assert_eq!(value(&prometheus, "bre_xdp_mode{mode=\"native\"}"), Some(1.0));

    let text = daemon.metrics().expect("a scrape");
    let sum = text.sum("bre_nack_duration_seconds_sum", &[("verdict", "miss")]);
    assert_eq!(value(&prometheus, &format!("histogram_sum({SERIES})")), Some(sum));
    let classic = classic(&text);
    let measured = pinned::latency(daemon.pins()).expect("pins")[Measured::Miss as usize];
    for share in [0.5, 0.9, 0.99] {
        let seconds = value(&prometheus, &format!("histogram_quantile({share}, {SERIES})")).expect("a quantile");
        #[expect(clippy::cast_precision_loss, reason = "seconds at most")]
        let right = measured.quantile_ns(share).expect("values") as f64 / 1e9;
        assert!((seconds / right - 1.0).abs() < WIDTH, "{share}: {seconds} s for {right} s");
        let (bound, _) = *classic.iter().find(|(_, count)| *count >= share * misses).expect("values");
        let bucket = bound / 2.0 / (1.0 + WIDTH)..=bound * (1.0 + WIDTH);
        assert!(bucket.contains(&seconds), "{share}: {seconds} s in a bucket up to {bound} s");
    }
}

/// The classic buckets of misses: bound in seconds, values up to it.
fn classic(text: &Metrics) -> Vec<(f64, f64)> {
    let of_misses = text
        .iter()
        .filter(|(name, _)| name.starts_with("bre_nack_duration_seconds_bucket{") && name.contains("verdict=\"miss\""));
    let bound = |name: &str| name.split_once("le=\"")?.1.split('"').next()?.parse().ok();
    let mut buckets: Vec<(f64, f64)> = of_misses.map(|(name, count)| (bound(name).expect("a bound"), count)).collect();
    buckets.sort_by(|one, other| one.0.total_cmp(&other.0));
    buckets
}
