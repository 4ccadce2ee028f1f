//! Accuracy on labelled pictures: one model, or an int8 model beside its float one, through edge-infer itself.
//!
//! Results go to a state file line by line, so that an evaluation that was cut off goes on where it stopped.

use crate::dataset::Labelled;
use crate::report::argmax;
use crate::scheme::sqnr_db;
use crate::{Error, Result};
use edge_infer::image;
use edge_infer::metadata::Preprocess;
use edge_infer::model::{LoadOptions, Model};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

/// Share of right answers with its 95 % confidence interval (Wilson's score interval).
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Share {
    /// Right answers over all.
    pub share: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
}

impl Share {
    /// `right` of `all`.
    pub fn new(right: usize, all: usize) -> Self {
        let (n, z) = (all.max(1) as f64, 1.959_964);
        let p = right as f64 / n;
        let center = (p + z * z / (2.0 * n)) / (1.0 + z * z / n);
        let half = z / (1.0 + z * z / n) * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt();
        Share { share: p, low: (center - half).max(0.0), high: (center + half).min(1.0) }
    }
}

/// One model's figures.
#[derive(Debug, Clone, Serialize)]
pub struct Accuracy {
    /// The file.
    pub model: String,
    /// The right class comes first.
    pub top1: Share,
    /// The right class is among the first five.
    pub top5: Share,
}

/// Result of an evaluation.
#[derive(Debug, Clone, Serialize)]
pub struct EvalReport {
    /// Pictures.
    pub images: usize,
    /// Of these, read from the state file.
    pub resumed: usize,
    /// The model.
    pub model: Accuracy,
    /// The float model beside it.
    pub float: Option<Accuracy>,
    /// Share of pictures on which both put the same class first.
    pub top1_agreement: Option<f64>,
    /// Signal to noise of the logits, the float model's being the signal, dB; null where equal.
    pub logit_sqnr_db: Option<f64>,
    /// float class → int8 class and how often, where they differ; most frequent first.
    pub changes: Vec<(usize, usize, usize)>,
    /// Wall time of this run, seconds.
    pub seconds: f64,
}

/// What is known of one picture.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Outcome {
    /// File name within the dataset, to find it again.
    path: PathBuf,
    class: usize,
    /// First five classes of the model, and of the float model.
    top: [Vec<usize>; 2],
    signal: f64,
    noise: f64,
}

type Outcomes = HashMap<PathBuf, Outcome>;

/// First line of a state file: what it belongs to.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Header {
    model: PathBuf,
    bytes: u64,
    float: Option<PathBuf>,
    float_bytes: u64,
}

/// What to evaluate.
pub struct Evaluation<'a> {
    /// The model, usually int8.
    pub model: &'a Path,
    /// The float model.
    pub float: Option<&'a Path>,
    /// Prepares pictures.
    pub preprocess: Preprocess,
    /// Pictures with their classes.
    pub pictures: &'a [Labelled],
    /// Results so far.
    pub state: Option<&'a Path>,
    /// Pictures at a time.
    pub jobs: usize,
}

fn top5(logits: &[f32]) -> Vec<usize> {
    let mut left = logits.to_vec();
    (0..logits.len().min(5))
        .map(|_| {
            let best = argmax(&left);
            left[best] = f32::NEG_INFINITY;
            best
        })
        .collect()
}

impl Evaluation<'_> {
    /// Runs it; `tick` is called after each picture.
    pub fn run(&self, tick: &(dyn Fn() + Sync)) -> Result<EvalReport> {
        let start = std::time::Instant::now();
        let (mut outcomes, mut file) = self.resume()?;
        let resumed = outcomes.len();
        let todo: Vec<&Labelled> = self.pictures.iter().filter(|p| !outcomes.contains_key(&p.path)).collect();
        (0..resumed).for_each(|_| tick());
        let next = AtomicUsize::new(0);
        let (send, receive) = mpsc::channel();
        std::thread::scope(|scope| -> Result<()> {
            for _ in 0..self.jobs.clamp(1, todo.len().max(1)) {
                let (send, next, todo) = (send.clone(), &next, &todo);
                scope.spawn(move || {
                    let work = || -> Result<()> {
                        let mut models = self.load()?;
                        while let Some(picture) = todo.get(next.fetch_add(1, Ordering::Relaxed)) {
                            let outcome = self.one(&mut models, picture);
                            let failed = outcome.is_err();
                            if send.send(outcome).is_err() || failed {
                                break;
                            }
                            tick();
                        }
                        Ok(())
                    };
                    if let Err(e) = work() {
                        let _ = send.send(Err(e)); // the receiver stops at the first error
                    }
                });
            }
            drop(send);
            for outcome in receive {
                let outcome = outcome.inspect_err(|_| next.store(usize::MAX / 2, Ordering::Relaxed))?;
                if let Some((path, file)) = &mut file {
                    let mut line = serde_json::to_string(&outcome).map_err(|e| Error::Usage(e.to_string()))?;
                    line.push('\n');
                    file.write_all(line.as_bytes()).map_err(|e| Error::io(&path, e))?;
                }
                outcomes.insert(outcome.path.clone(), outcome);
            }
            Ok(())
        })?;
        Ok(self.report(&outcomes, resumed, start.elapsed().as_secs_f64()))
    }

    fn load(&self) -> Result<Vec<Model>> {
        let options = LoadOptions { threads: 1, ..Default::default() };
        std::iter::once(self.model).chain(self.float).map(|path| Model::load(path, &options)).collect()
    }

    fn one(&self, models: &mut [Model], picture: &Labelled) -> Result<Outcome> {
        let input = image::load_tensor(&picture.path, &self.preprocess)?;
        let mut logits = Vec::with_capacity(2);
        for model in models {
            logits.push(model.run(&input)?.to_vec());
        }
        let (mut signal, mut noise) = (0.0, 0.0);
        if let [model, float] = &logits[..] {
            for (&m, &f) in model.iter().zip(float) {
                signal += f64::from(f).powi(2);
                noise += (f64::from(f) - f64::from(m)).powi(2);
            }
        }
        let top = [top5(&logits[0]), logits.get(1).map(|l| top5(l)).unwrap_or_default()];
        Ok(Outcome { path: picture.path.clone(), class: picture.class, top, signal, noise })
    }

    /// Reads what a state file holds and leaves it ready to append; a line that was cut off is dropped.
    fn resume(&self) -> Result<(Outcomes, Option<(PathBuf, File)>)> {
        let Some(path) = self.state else { return Ok((HashMap::new(), None)) };
        let io = |e| Error::io(path, e);
        let bytes = |p: &Path| std::fs::metadata(p).map(|m| m.len()).map_err(|e| Error::io(p, e));
        let header = Header {
            model: self.model.into(),
            bytes: bytes(self.model)?,
            float: self.float.map(Into::into),
            float_bytes: self.float.map_or(Ok(0), bytes)?,
        };
        let mut file = File::options().read(true).write(true).create(true).truncate(false).open(path).map_err(io)?;
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(io)?;
        let whole = text.rfind('\n').map_or(0, |at| at + 1);
        let mut lines = text[..whole].lines();
        let mut outcomes = HashMap::new();
        match lines.next() {
            None => {
                let line = serde_json::to_string(&header).map_err(|e| Error::Usage(e.to_string()))?;
                file.set_len(0).and_then(|_| file.rewind()).and_then(|_| writeln!(file, "{line}")).map_err(io)?;
            }
            Some(first) => {
                if serde_json::from_str::<Header>(first).ok().as_ref() != Some(&header) {
                    let reason = "it belongs to an evaluation of other models; delete it, or give another --state";
                    return Err(Error::image(path, reason));
                }
                let wanted: HashMap<&PathBuf, usize> = self.pictures.iter().map(|p| (&p.path, p.class)).collect();
                for line in lines {
                    let outcome: Outcome =
                        serde_json::from_str(line).map_err(|e| Error::image(path, format!("{e}; delete it, or give another --state")))?;
                    if wanted.get(&outcome.path) == Some(&outcome.class) {
                        outcomes.insert(outcome.path.clone(), outcome);
                    }
                }
                file.set_len(whole as u64).and_then(|_| file.seek(SeekFrom::End(0))).map_err(io)?;
            }
        }
        Ok((outcomes, Some((path.to_owned(), file))))
    }

    fn report(&self, outcomes: &Outcomes, resumed: usize, seconds: f64) -> EvalReport {
        let all = outcomes.len();
        let count = |f: &dyn Fn(&Outcome) -> bool| outcomes.values().filter(|o| f(o)).count();
        let accuracy = |side: usize, path: &Path| Accuracy {
            model: path.display().to_string(),
            top1: Share::new(count(&|o| o.top[side].first() == Some(&o.class)), all),
            top5: Share::new(count(&|o| o.top[side].contains(&o.class)), all),
        };
        let (signal, noise) = outcomes.values().fold((0.0, 0.0), |s, o| (s.0 + o.signal, s.1 + o.noise));
        let mut changes: HashMap<(usize, usize), usize> = HashMap::new();
        if self.float.is_some() {
            for o in outcomes.values().filter(|o| o.top[0].first() != o.top[1].first()) {
                let first = |side: usize| o.top[side].first().copied().unwrap_or(0);
                *changes.entry((first(1), first(0))).or_default() += 1;
            }
        }
        let changed: usize = changes.values().sum();
        let mut changes: Vec<_> = changes.into_iter().map(|((f, i), n)| (f, i, n)).collect();
        changes.sort_by_key(|&(f, i, n)| (std::cmp::Reverse(n), f, i));
        EvalReport {
            images: all,
            resumed,
            model: accuracy(0, self.model),
            float: self.float.map(|f| accuracy(1, f)),
            top1_agreement: self.float.map(|_| 1.0 - changed as f64 / all.max(1) as f64),
            logit_sqnr_db: self.float.map(|_| sqnr_db(signal, noise)),
            changes,
            seconds,
        }
    }
}

impl fmt::Display for EvalReport {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let share = |s: &Share| format!("{:.2} % ({:.2} … {:.2})", 100.0 * s.share, 100.0 * s.low, 100.0 * s.high);
        writeln!(f, "{:<32} {:>26} {:>26}", format!("{} pictures, 95 % intervals", self.images), "top-1", "top-5")?;
        for a in self.float.iter().chain([&self.model]) {
            writeln!(f, "{:<32} {:>26} {:>26}", a.model, share(&a.top1), share(&a.top5))?;
        }
        if let (Some(same), Some(db)) = (self.top1_agreement, self.logit_sqnr_db) {
            writeln!(f, "top-1 agreement    {:.2} %", 100.0 * same)?;
            writeln!(f, "logit SQNR         {db:.1} dB")?;
        }
        for (a, b, n) in self.changes.iter().take(20) {
            writeln!(f, "class {a} → {b}: {n}")?;
        }
        write!(f, "time               {:.1} s, {} of the pictures from an earlier run", self.seconds, self.resumed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wilson_interval() {
        // Newcombe 1998, table I: 81 of 263.
        let s = Share::new(81, 263);
        assert!((s.low - 0.2553).abs() < 1e-4 && (s.high - 0.3662).abs() < 1e-4, "{s:?}");
        assert_eq!(Share::new(0, 10).low, 0.0);
    }

    #[test]
    fn five_largest_in_order() {
        assert_eq!(top5(&[0.1, 3.0, -1.0, 2.0, 3.0, 0.0, 1.0]), [1, 4, 3, 6, 0]);
        assert_eq!(top5(&[1.0, 2.0]), [1, 0]);
    }
}
