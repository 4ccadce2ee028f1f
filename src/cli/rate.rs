//! How often something may happen: requests of an address, lines of a log.

use std::time::{Duration, Instant};

/// A token bucket: so many at once, then so many a second.
#[derive(Debug, Clone)]
pub struct Bucket {
    per_second: f64,
    burst: f64,
    tokens: f64,
    at: Instant,
}

impl Bucket {
    pub fn new(burst: f64, per_second: f64, now: Instant) -> Self {
        Bucket { per_second, burst, tokens: burst, at: now }
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + passed * self.per_second).min(self.burst);
        self.at = now;
    }

    /// Whether it may happen now; then it counts.
    pub fn take(&mut self, now: Instant) -> bool {
        self.fill(now);
        let may = self.tokens >= 1.0;
        if may {
            self.tokens -= 1.0;
        }
        may
    }

    /// Whether nothing of late counts any more.
    pub fn is_full(&mut self, now: Instant) -> bool {
        self.fill(now);
        self.tokens >= self.burst
    }
}

/// Lines about things that a hostile peer can make happen any number of times: a few at once, then one every ten seconds.
#[derive(Debug)]
pub struct Lines {
    bucket: Bucket,
    left_out: u64,
}

impl Lines {
    const BURST: f64 = 10.0;
    const EVERY: Duration = Duration::from_secs(10);

    pub fn new(now: Instant) -> Self {
        Lines { bucket: Bucket::new(Self::BURST, 1.0 / Self::EVERY.as_secs_f64(), now), left_out: 0 }
    }

    /// What is to be added to a line that may be written now: how many were left out since the last one. `None` leaves this
    /// one out too.
    pub fn next(&mut self, now: Instant) -> Option<String> {
        if !self.bucket.take(now) {
            self.left_out += 1;
            return None;
        }
        Some(match std::mem::take(&mut self.left_out) {
            0 => String::new(),
            n => format!(" (and {n} more before)"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut bucket = Bucket::new(3.0, 10.0, start);
        assert_eq!([bucket.take(start), bucket.take(start), bucket.take(start), bucket.take(start)], [true, true, true, false]);
        assert!(!bucket.take(at(99)) && !bucket.is_full(at(99)));
        assert!(bucket.take(at(101)) && !bucket.take(at(101)));
        assert!(bucket.is_full(at(10_000)) && bucket.take(at(10_000)));
    }

    #[test]
    fn a_million_events_are_a_handful_of_lines() {
        let (start, mut lines) = (Instant::now(), Lines::new(Instant::now()));
        let written: Vec<String> = (0..1_000_000).filter_map(|i| lines.next(start + Duration::from_micros(i * 60))).collect();
        // A minute: ten at once and one every ten seconds.
        assert!((15..=16).contains(&written.len()), "{written:?}");
        assert!(written[9].is_empty() && written[10].contains("more before"), "{written:?}");
    }
}
