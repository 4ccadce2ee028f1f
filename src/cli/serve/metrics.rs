//! What `serve` counts, and Prometheus' text form of it
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>).

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Upper bounds of the buckets, µs; what is slower is in none.
const BOUNDS: [u64; 12] = [500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000, 5_000_000];
/// Answers that are given.
pub const CODES: [u16; 15] = [200, 204, 400, 401, 403, 404, 405, 408, 411, 413, 422, 429, 431, 500, 503];

/// A distribution of times.
#[derive(Default)]
pub struct Histogram {
    buckets: [AtomicU64; BOUNDS.len()],
    count: AtomicU64,
    sum_us: AtomicU64,
}

impl Histogram {
    pub fn add(&self, time: Duration) {
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        if let Some(bucket) = BOUNDS.iter().position(|b| us <= *b) {
            self.buckets[bucket].fetch_add(1, Relaxed);
        }
        self.count.fetch_add(1, Relaxed);
        self.sum_us.fetch_add(us, Relaxed);
    }

    pub fn count(&self) -> u64 {
        self.count.load(Relaxed)
    }

    /// `labels` is empty, or ends with a comma.
    fn write(&self, out: &mut String, name: &str, labels: &str) {
        let mut below = 0;
        for (bound, bucket) in BOUNDS.iter().zip(&self.buckets) {
            below += bucket.load(Relaxed);
            let _ = writeln!(out, "{name}_bucket{{{labels}le=\"{}\"}} {below}", *bound as f64 / 1e6);
        }
        let count = self.count().max(below);
        let _ = writeln!(out, "{name}_bucket{{{labels}le=\"+Inf\"}} {count}");
        let plain = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.trim_end_matches(',')) };
        let _ = writeln!(out, "{name}_sum{plain} {}", self.sum_us.load(Relaxed) as f64 / 1e6);
        let _ = writeln!(out, "{name}_count{plain} {count}");
    }
}

/// Counters since the start.
#[derive(Default)]
pub struct Metrics {
    pub capture_to_label: Histogram,
    pub camera_inference: Histogram,
    pub posted_inference: Histogram,
    pub undecodable: AtomicU64,
    pub connections: AtomicU64,
    answers: [AtomicU64; CODES.len()],
}

impl Metrics {
    pub fn answered(&self, code: u16) {
        if let Some(at) = CODES.iter().position(|c| *c == code) {
            self.answers[at].fetch_add(1, Relaxed);
        }
    }
}

/// A page of metrics in the making.
#[derive(Default)]
pub struct Page(String);

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    /// One value a label set; `labels` is without braces.
    pub fn values(&mut self, name: &str, kind: &str, help: &str, values: &[(String, f64)]) {
        self.head(name, kind, help);
        for (labels, value) in values {
            let _ = if labels.is_empty() { writeln!(self.0, "{name} {value}") } else { writeln!(self.0, "{name}{{{labels}}} {value}") };
        }
    }

    pub fn value(&mut self, name: &str, kind: &str, help: &str, value: f64) {
        self.values(name, kind, help, &[(String::new(), value)]);
    }

    pub fn metrics(&mut self, m: &Metrics) {
        self.head("edge_infer_capture_to_label_seconds", "histogram", "From a frame's capture to its label, at least.");
        m.capture_to_label.write(&mut self.0, "edge_infer_capture_to_label_seconds", "");
        self.head("edge_infer_inference_seconds", "histogram", "Inference alone.");
        m.camera_inference.write(&mut self.0, "edge_infer_inference_seconds", "source=\"camera\",");
        m.posted_inference.write(&mut self.0, "edge_infer_inference_seconds", "source=\"post\",");
        let codes: Vec<_> = CODES.iter().zip(&m.answers).map(|(c, n)| (format!("code=\"{c}\""), n.load(Relaxed) as f64)).collect();
        self.values("edge_infer_http_requests_total", "counter", "Answers by status code.", &codes);
        self.value("edge_infer_http_connections", "gauge", "Open connections.", m.connections.load(Relaxed) as f64);
    }

    pub fn text(self) -> String {
        self.0
    }
}

/// A label's value, as the format wants it.
pub fn quoted(value: &str) -> String {
    format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative() {
        let (histogram, mut out) = (Histogram::default(), String::new());
        for us in [400, 500, 501, 3_000, 9_000_000] {
            histogram.add(Duration::from_micros(us));
        }
        histogram.write(&mut out, "t", "a=\"b\",");
        let has = |line: &str| assert!(out.lines().any(|l| l == line), "{line}\n{out}");
        has("t_bucket{a=\"b\",le=\"0.0005\"} 2");
        has("t_bucket{a=\"b\",le=\"0.001\"} 3");
        has("t_bucket{a=\"b\",le=\"5\"} 4");
        has("t_bucket{a=\"b\",le=\"+Inf\"} 5");
        has("t_sum{a=\"b\"} 9.004401");
        has("t_count{a=\"b\"} 5");
    }

    #[test]
    fn label_values_are_escaped() {
        assert_eq!(quoted("a\"b\\c\nd"), r#""a\"b\\c\nd""#);
    }
}
