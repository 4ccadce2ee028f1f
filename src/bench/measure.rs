//! Runs models and times them.

use super::monitor::{Conditions, Monitor};
use super::report::{Interval, Measurement};
use super::stats::{Samples, describe};
use crate::board::{Board, Machine, Pinned};
use crate::kernels::peak;
use crate::model::Model;
use crate::{Error, Result};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Models that are compared take turns of so many inferences; the first of a turn finds the other's data in the caches, and is not timed.
const TURN: u64 = 10;
/// Fewest samples that a confidence is computed from.
const FEW: u64 = 20;
/// Inferences that layers are timed in, at most.
const LAYER_RUNS: u64 = 100;
/// How long the core's peak is measured.
const PEAK: Duration = Duration::from_millis(60);
/// Parts of a sustained measurement, and the shortest one.
const INTERVALS: (u32, Duration) = (60, Duration::from_secs(1));

/// When a measurement is done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Stop {
    /// After so many timed inferences of each model, exactly.
    Runs(u64),
    /// Once the median's 95 % interval is within ± this share of it, or after this time.
    Confidence(f64, Duration),
    /// After this time, with a line for each part of it.
    Sustained(Duration),
}

/// What to measure.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Models that take turns.
    pub models: Vec<PathBuf>,
    /// Threads.
    pub threads: usize,
    /// Processors to keep to; all, where it is empty.
    pub cpus: Vec<usize>,
    /// Inferences before the timed ones, exactly; the very first one of all is timed by itself.
    pub warmup: u32,
    /// When it is done.
    pub stop: Stop,
    /// Whether layers are timed, too.
    pub layers: bool,
}

struct Contestant {
    model: Model,
    input: Vec<f32>,
    samples: Samples,
    result: Measurement,
}

/// Loads and measures the plan's models; `load` takes a path and a number of threads.
pub fn measure(plan: &Plan, board: &Board, machine: &Machine, load: impl Fn(&Path, usize) -> Result<Model>) -> Result<Vec<Measurement>> {
    let _pinned = Pinned::to(&plan.cpus)?;
    let mut contestants = plan.models.iter().map(|path| Contestant::load(plan, path, &load)).collect::<Result<Vec<_>>>()?;
    for c in &mut contestants {
        for _ in 1..plan.warmup {
            c.model.run(&c.input)?;
        }
    }
    let max_mhz = machine.clusters.iter().find(|c| plan.cpus.is_empty() || c.cpus.contains(&plan.cpus[0])).and_then(|c| c.max_mhz);
    let (conditions, stopped_by) = match plan.stop {
        Stop::Sustained(time) => (sustain(plan, board, &mut contestants[0], time, max_mhz)?, "time"),
        _ => {
            let monitor =
                Monitor::start(board, &plan.cpus, plan.threads).map_err(|e| Error::Usage(format!("cannot start a thread: {e}")))?;
            let stopped_by = take_turns(plan, &mut contestants);
            (monitor.stop(), stopped_by?)
        }
    };
    contestants.into_iter().map(|c| c.finish(plan, &conditions, max_mhz, stopped_by)).collect()
}

impl Contestant {
    fn load(plan: &Plan, path: &Path, load: impl Fn(&Path, usize) -> Result<Model>) -> Result<Self> {
        reset_peak_rss();
        let (start, faults_before) = (Instant::now(), faults());
        let mut model = load(path, plan.threads)?;
        let load_ms = ms(start.elapsed());
        let input = fixed_input(model.input_shape().iter().product());
        let (mut samples, mut first_inference_ms) = (Samples::default(), 0.0);
        // Without a warm-up the first inference is a timed one: exactly as many are run as were asked for.
        let start = Instant::now();
        model.run(&input)?;
        first_inference_ms += ms(start.elapsed());
        if plan.warmup == 0 {
            samples.push(first_inference_ms);
        }
        let result = Measurement {
            model: path.display().to_string(),
            // Without an int8 region no kernel of ours runs.
            isa: if model.report().regions == 0 { "tract" } else { model.isa() }.into(),
            threads: model.threads(),
            cpus: plan.cpus.clone(),
            warmup: plan.warmup,
            load_ms,
            first_inference_ms,
            peak_rss_bytes: peak_rss(),
            cold_faults: difference(faults_before, faults()),
            int8_macs: model.report().int8_macs,
            ..Measurement::default()
        };
        Ok(Contestant { model, input, samples, result })
    }

    fn time_one(&mut self) -> Result<f64> {
        let start = Instant::now();
        self.model.run(&self.input)?;
        let time = ms(start.elapsed());
        self.samples.push(time);
        Ok(time)
    }

    fn finish(mut self, plan: &Plan, conditions: &Conditions, max_mhz: Option<f64>, stopped_by: &str) -> Result<Measurement> {
        let mut result = self.result;
        (result.latency_ms, result.histogram) = describe(self.samples.as_slice());
        result.runs = self.samples.len();
        result.stopped_by = stopped_by.into();
        result.int8_gmacs_per_s = result.int8_macs as f64 / result.latency_ms.median / 1e6;
        result.marks = conditions.marks(max_mhz);
        result.conditions = conditions.clone();
        if plan.layers {
            result.peak_gmacs_per_s = peak::gmacs_per_second(&result.isa, PEAK);
            let runs = result.runs.min(LAYER_RUNS) as usize;
            result.layers = super::layers(&mut self.model, &self.input, runs, result.peak_gmacs_per_s)?;
        }
        Ok(result)
    }
}

/// Times every model until the plan says enough; what said so.
fn take_turns(plan: &Plan, contestants: &mut [Contestant]) -> Result<&'static str> {
    let (start, mut next_check) = (Instant::now(), FEW);
    let together = contestants.len() > 1;
    let before_all = faults();
    let stopped_by = loop {
        for c in contestants.iter_mut() {
            let left = match plan.stop {
                Stop::Runs(runs) => runs.saturating_sub(c.samples.len()),
                _ => u64::MAX,
            };
            if together && left > 0 {
                c.model.run(&c.input)?;
            }
            let before = together.then(faults).flatten();
            // Alone there are no turns, but a look at the clock.
            for _ in 0..left.min(TURN) {
                c.time_one()?;
            }
            c.result.run_faults = sum(c.result.run_faults, difference(before, before.and_then(|_| faults())));
        }
        let fewest = contestants.iter().map(|c| c.samples.len()).min().unwrap_or(0);
        match plan.stop {
            Stop::Runs(runs) if fewest >= runs => break "runs",
            Stop::Confidence(target, most) if fewest >= next_check => {
                if contestants.iter().all(|c| c.samples.relative_error() <= target) {
                    break "confidence";
                }
                if start.elapsed() >= most {
                    break "time";
                }
                // Sorting all samples each turn would become the load.
                next_check = fewest + fewest / 8;
            }
            Stop::Confidence(_, most) if start.elapsed() >= most && fewest > 0 => break "time",
            _ => {}
        }
    };
    if let ([alone], false) = (&mut *contestants, together) {
        alone.result.run_faults = difference(before_all, faults());
    }
    Ok(stopped_by)
}

/// Runs one model for `time`, and watches each part of it.
fn sustain(plan: &Plan, board: &Board, c: &mut Contestant, time: Duration, max_mhz: Option<f64>) -> Result<Conditions> {
    let length = (time / INTERVALS.0).max(INTERVALS.1);
    let (start, before) = (Instant::now(), faults());
    while start.elapsed() < time {
        let monitor = Monitor::start(board, &plan.cpus, plan.threads).map_err(|e| Error::Usage(format!("cannot start a thread: {e}")))?;
        let (begun, mut samples) = (Instant::now(), Samples::default());
        while begun.elapsed() < length {
            samples.push(c.time_one()?);
        }
        let latency = describe(samples.as_slice()).0;
        c.result.sustained.push(Interval {
            start_s: (begun - start).as_secs_f64(),
            seconds: begun.elapsed().as_secs_f64(),
            runs: samples.len(),
            median_ms: latency.median,
            p99_ms: latency.p99,
            conditions: monitor.stop(),
            marks: vec![],
        });
    }
    c.result.run_faults = difference(before, faults());
    let intervals = &mut c.result.sustained;
    let highest = intervals.iter().filter_map(|i| i.conditions.mhz).map(|m| m[2]).max_by(f64::total_cmp);
    for interval in intervals.iter_mut() {
        let mut seen = interval.conditions.clone();
        seen.mhz = seen.mhz.zip(highest).map(|([low, mean, _], high)| [low, mean, high]);
        interval.marks = seen.marks(max_mhz);
    }
    Ok(intervals.iter().fold(Conditions::default(), |all, i| all.with(&i.conditions)))
}

/// Reproducible values of about the spread of a normalised picture.
pub fn fixed_input(len: usize) -> Vec<f32> {
    let mut state = 1u32;
    std::iter::repeat_with(|| {
        // Numerical Recipes' linear congruential generator; its high bits are good enough for pixels.
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 22) as f32 - 2.0
    })
    .take(len)
    .collect()
}

fn ms(t: Duration) -> f64 {
    t.as_secs_f64() * 1e3
}

/// Minor and major page faults of this process so far: proc_pid_stat(5), fields 10 and 12.
fn faults() -> Option<[u64; 2]> {
    let text = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name, in parentheses, may hold spaces.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    let minor = fields.nth(7)?.parse().ok()?;
    Some([minor, fields.nth(1)?.parse().ok()?])
}

fn difference(before: Option<[u64; 2]>, after: Option<[u64; 2]>) -> Option<[u64; 2]> {
    before.zip(after).map(|(b, a)| [a[0].saturating_sub(b[0]), a[1].saturating_sub(b[1])])
}

fn sum(a: Option<[u64; 2]>, b: Option<[u64; 2]>) -> Option<[u64; 2]> {
    b.map(|b| a.map_or(b, |a| [a[0] + b[0], a[1] + b[1]]))
}

/// Starts the peak of resident memory anew: proc_pid_clear_refs(5). Not all kernels let us.
fn reset_peak_rss() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

fn peak_rss() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let kilobytes: u64 = text.lines().find_map(|l| l.strip_prefix("VmHWM:"))?.split_whitespace().next()?.parse().ok()?;
    Some(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_input_is_fixed_and_looks_like_a_normalised_picture() {
        let x = fixed_input(10_000);
        assert_eq!(x, fixed_input(10_000));
        let mean = x.iter().sum::<f32>() / 10_000.0;
        assert!(mean.abs() < 0.05 && x.iter().all(|v| (-2.0..2.0).contains(v)), "{mean}");
        assert!(x.iter().any(|&v| v > 1.9) && x.iter().any(|&v| v < -1.9));
    }

    #[test]
    fn faults_and_memory_are_read() {
        let before = faults();
        let memory = std::hint::black_box(vec![1u8; 32 << 20]);
        let [minor, _] = difference(before, faults()).unwrap();
        assert!(minor > 0 && peak_rss().unwrap() > memory.len() as u64, "{minor}");
    }
}
