//! Watches the board while something is measured.

use crate::board::{Board, Rail, Snapshot, Throttled};
use serde::{Deserialize, Serialize};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// Between two looks: often enough to see a governor at work, seldom enough not to matter.
const PERIOD: Duration = Duration::from_millis(200);
/// A clock that falls below this share of its highest has dropped.
const DROP: f64 = 0.95;

/// What the board did during a measurement.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Conditions {
    /// Times that the sensors were read.
    pub readings: u32,
    /// Clock of the slowest processor in use: lowest, mean, highest, MHz.
    pub mhz: Option<[f64; 3]>,
    /// Hottest zone: highest, °C.
    pub celsius: Option<f64>,
    /// A Raspberry Pi's flags, all that were set at any time.
    pub throttled: Option<Throttled>,
    /// Power of each rail: mean.
    pub rails: Vec<Rail>,
}

impl Conditions {
    /// What makes the measurement less than the board's best: nothing, on a good day.
    pub fn marks(&self, max_mhz: Option<f64>) -> Vec<String> {
        let mut marks = Vec::new();
        if let Some([low, mean, high]) = self.mhz {
            if low < DROP * high {
                marks.push(format!("the clock dropped from {high:.0} to {low:.0} MHz"));
            } else if let Some(most) = max_mhz.filter(|most| mean < DROP * most) {
                marks.push(format!("the clock was {mean:.0} MHz, and can be {most:.0}"));
            }
        }
        if let Some(flags) = self.throttled {
            marks.extend(flags.now().into_iter().map(String::from));
        }
        marks
    }

    /// Both, one after the other.
    pub fn with(mut self, later: &Conditions) -> Conditions {
        let (n, m) = (f64::from(self.readings), f64::from(later.readings));
        let mean = |a: f64, b: f64| (a * n + b * m) / (n + m).max(1.0);
        self.mhz = match (self.mhz, later.mhz) {
            (Some(a), Some(b)) => Some([a[0].min(b[0]), mean(a[1], b[1]), a[2].max(b[2])]),
            (a, b) => a.or(b),
        };
        self.celsius = hotter(self.celsius, later.celsius);
        self.throttled = match (self.throttled, later.throttled) {
            (Some(Throttled(a)), Some(Throttled(b))) => Some(Throttled(a | b)),
            (a, b) => a.or(b),
        };
        for rail in &later.rails {
            match self.rails.iter_mut().find(|r| r.name == rail.name) {
                Some(mine) => mine.milliwatts = mean(mine.milliwatts, rail.milliwatts),
                None => self.rails.push(rail.clone()),
            }
        }
        self.readings += later.readings;
        self
    }
}

fn hotter(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    a.into_iter().chain(b).max_by(f64::total_cmp)
}

/// Reads sensors until [`Monitor::stop`].
pub enum Monitor {
    /// There are none: not even a thread is worth its disturbance.
    Blind(Conditions),
    /// A thread of its own.
    Watching {
        /// Ends it.
        stop: SyncSender<()>,
        /// Gives what it saw.
        thread: JoinHandle<Conditions>,
    },
}

impl Monitor {
    /// Starts looking at `cpus` (all of them, where it is empty), of which `threads` are at work.
    pub fn start(board: &Board, cpus: &[usize], threads: usize) -> std::io::Result<Monitor> {
        let first = board.snapshot();
        if first.mhz.is_empty() && first.hottest().is_none() && first.throttled.is_none() && first.rails.is_empty() {
            return Ok(Monitor::Blind(Conditions::default()));
        }
        let (stop, stopped) = sync_channel(1);
        let (board, cpus) = (board.clone(), cpus.to_vec());
        let thread = std::thread::Builder::new().name("edge-monitor".into()).spawn(move || {
            let mut watch = Watch::default();
            loop {
                let mut now = board.snapshot();
                if !cpus.is_empty() {
                    now.mhz = cpus.iter().filter_map(|&c| board.clock(c)).collect();
                }
                watch.add(&now, threads);
                match stopped.recv_timeout(PERIOD) {
                    Err(RecvTimeoutError::Timeout) => {}
                    _ => return watch.end(),
                }
            }
        })?;
        Ok(Monitor::Watching { stop, thread })
    }

    /// What was seen.
    pub fn stop(self) -> Conditions {
        match self {
            Monitor::Blind(nothing) => nothing,
            Monitor::Watching { stop, thread } => {
                let _ = stop.send(());
                thread.join().unwrap_or_default()
            }
        }
    }
}

#[derive(Default)]
struct Watch {
    seen: Conditions,
    mhz_sum: f64,
}

impl Watch {
    fn add(&mut self, now: &Snapshot, threads: usize) {
        self.seen.readings += 1;
        // Where processors are idle, their clocks say nothing, and which ones work is not known: the fastest does.
        let clocks = now.mhz.iter().copied();
        let mhz = if threads >= now.mhz.len() { clocks.min_by(f64::total_cmp) } else { clocks.max_by(f64::total_cmp) };
        if let Some(mhz) = mhz {
            let [low, _, high] = self.seen.mhz.unwrap_or([mhz; 3]);
            self.mhz_sum += mhz;
            self.seen.mhz = Some([low.min(mhz), self.mhz_sum / f64::from(self.seen.readings), high.max(mhz)]);
        }
        self.seen.celsius = hotter(self.seen.celsius, now.hottest());
        if let Some(Throttled(flags)) = now.throttled {
            let Throttled(before) = self.seen.throttled.unwrap_or(Throttled(0));
            self.seen.throttled = Some(Throttled(before | flags));
        }
        for rail in &now.rails {
            match self.seen.rails.iter_mut().find(|r| r.name == rail.name) {
                Some(sum) => sum.milliwatts += rail.milliwatts,
                None => self.seen.rails.push(rail.clone()),
            }
        }
    }

    fn end(mut self) -> Conditions {
        for rail in &mut self.seen.rails {
            rail.milliwatts /= f64::from(self.seen.readings);
        }
        self.seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(clocks: &[&[f64]], threads: usize) -> Conditions {
        let mut watch = Watch::default();
        clocks.iter().for_each(|mhz| watch.add(&Snapshot { mhz: mhz.to_vec(), ..Snapshot::default() }, threads));
        watch.end()
    }

    #[test]
    fn a_drop_is_marked_and_idle_processors_are_not_one() {
        let dropped = watch(&[&[2400.0, 2400.0], &[2400.0, 1500.0], &[2400.0, 2400.0]], 2);
        assert_eq!(dropped.mhz, Some([1500.0, 2100.0, 2400.0]));
        assert_eq!(dropped.marks(Some(2400.0)), ["the clock dropped from 2400 to 1500 MHz"]);
        let idle = watch(&[&[2400.0, 600.0], &[600.0, 2400.0]], 1);
        assert!(idle.marks(Some(2400.0)).is_empty());
        let slow = watch(&[&[1500.0, 1500.0]], 2);
        assert_eq!(slow.marks(Some(2400.0)), ["the clock was 1500 MHz, and can be 2400"]);
        assert!(slow.marks(None).is_empty() && watch(&[&[]], 1).marks(Some(1.0)).is_empty());
    }

    #[test]
    fn flags_add_up_and_power_is_a_mean() {
        let mut watch = Watch::default();
        for (flags, mw) in [(0x1, 4000.0), (0x50004, 6000.0)] {
            let rails = vec![Rail { name: "VDD_IN".into(), milliwatts: mw }];
            watch.add(&Snapshot { throttled: Some(Throttled(flags)), rails, ..Snapshot::default() }, 1);
        }
        let seen = watch.end();
        assert_eq!(seen.marks(None), ["the supply voltage is too low", "the clock is throttled"]);
        assert_eq!(seen.rails[0].milliwatts, 5000.0);
    }
}
