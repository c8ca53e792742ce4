//! The Prometheus text format, read into a map.

use std::collections::BTreeMap;

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
    use super::Metrics;

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
}
