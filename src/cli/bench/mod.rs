//! `bench`: latency of models on this machine.

mod print;

use super::{ChoiceArgs, RunArgs};
use anyhow::Context;
use clap::{Args, Subcommand};
use edge_infer::Error;
use edge_infer::bench::compare::compare;
use edge_infer::bench::html;
use edge_infer::bench::measure::{Plan, Stop, measure};
use edge_infer::bench::report::{Report, SCHEMA};
use edge_infer::board::{Board, Cluster};
use edge_infer::import::onnx::write_atomically_with;
use edge_infer::model::{LoadOptions, Model};
use edge_infer::plan::Policy;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Measures the latency of models on a fixed input, and what the board did meanwhile. Preprocessing is not included.
#[derive(Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "\
Examples:
  edge-infer bench --model r18q.onnx                              until the median is known to ± 1 %
  edge-infer bench --model r18q.onnx --threads 1 --layers         each layer, against the core's peak
  edge-infer bench --model r18q.onnx --sweep --csv                1, 2, … threads; each cluster of a big.LITTLE
  edge-infer bench --model r18q.onnx --against r18.onnx           int8 and float, in turns
  edge-infer bench --model r18q.onnx --sustained 10m --html heat.html
  edge-infer bench --model r18q.onnx --json > today.json
  edge-infer bench compare yesterday.json today.json --fail-above 3

A measurement during which the clock dropped, or the board says that it throttles, is marked. Clocks, temperatures and power are
read from /sys, or from the folder that EDGE_SYSFS names."
)]
pub struct BenchArgs {
    #[command(subcommand)]
    compare: Option<BenchCommand>,
    /// ONNX model, int8 QDQ or float.
    #[arg(short, long, required = true)]
    model: Option<PathBuf>,
    #[command(flatten)]
    choice: ChoiceArgs,
    /// Other models, which take turns with the first; repeat it for more.
    #[arg(long, value_name = "MODEL")]
    against: Vec<PathBuf>,
    /// Timed inferences, exactly [default: as many as --confidence needs].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    runs: Option<u32>,
    /// Stop once the median is known to ± this many per cent, with 95 % confidence.
    #[arg(long, value_name = "PER CENT", default_value_t = 1.0, value_parser = percent)]
    confidence: f64,
    /// Stop after this time, whatever the confidence.
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = duration)]
    max_time: Duration,
    /// Run for this time (90s, 10m, 1h), and report each part of it.
    #[arg(long, value_name = "TIME", value_parser = duration, conflicts_with_all = ["runs", "against", "sweep"])]
    sustained: Option<Duration>,
    /// Inferences before the timed ones, exactly.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    warmup: u32,
    /// Measure on 1, 2, 4, … and all processors of each cluster.
    #[arg(long)]
    sweep: bool,
    /// Time every layer of a model that is all int8, in inferences of their own.
    #[arg(long)]
    layers: bool,
    /// Run whole models in tract, quantized ones as well: what the integer kernels are compared with.
    #[arg(long, conflicts_with = "layers")]
    tract: bool,
    /// Print as JSON, which `bench compare` reads.
    #[arg(long)]
    json: bool,
    /// Print a line of comma-separated values for each result.
    #[arg(long, conflicts_with = "json")]
    csv: bool,
    /// Also write a page with plots.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

#[derive(Subcommand)]
enum BenchCommand {
    Compare(CompareArgs),
}

/// Compares two outputs of `bench --json`: is B faster than A, beyond their noise?
#[derive(Args)]
struct CompareArgs {
    /// Before.
    a: PathBuf,
    /// After.
    b: PathBuf,
    /// Exit with 1 if a median is certainly above A's by more than so many per cent.
    #[arg(long, value_name = "PER CENT", value_parser = percent)]
    fail_above: Option<f64>,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

fn percent(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|p| (0.01..=100.0).contains(p)).ok_or_else(|| "a number from 0.01 to 100".into())
}

/// `90s`, `10m`, `1h`, up to a day.
fn duration(text: &str) -> Result<Duration, String> {
    let unit = text.chars().last().unwrap_or(' ');
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        _ => 0,
    };
    let number = text.strip_suffix(unit).and_then(|n| n.parse::<u64>().ok());
    let total = number.and_then(|n| n.checked_mul(seconds)).filter(|t| (1..=86_400).contains(t));
    total.map(Duration::from_secs).ok_or_else(|| "a time from 1s to 24h, for example 90s, 10m or 1h".into())
}

pub fn run(args: &BenchArgs, run: &RunArgs) -> anyhow::Result<ExitCode> {
    if let Some(BenchCommand::Compare(args)) = &args.compare {
        return run_compare(args);
    }
    let models = args.model.iter().chain(&args.against).cloned().collect::<Vec<_>>();
    let stop = match (args.runs, args.sustained) {
        (Some(runs), _) => Stop::Runs(runs.into()),
        (None, Some(time)) => Stop::Sustained(time),
        (None, None) => Stop::Confidence(args.confidence / 100.0, args.max_time),
    };
    let board = Board::new();
    let (machine, before) = (board.machine(), board.snapshot());
    let unix_seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs());
    let mut results = Vec::new();
    for (cpus, threads) in places(args.sweep, run, &machine.clusters) {
        let plan = Plan { models: models.clone(), threads, cpus, warmup: args.warmup, stop, layers: args.layers };
        let policy = if args.tract { Policy::Tract } else { Policy::default() };
        let load = |path: &Path, threads| Model::load(path, &LoadOptions { threads, policy, ..run.options(&args.choice) });
        results.extend(measure(&plan, &board, &machine, load).with_context(|| format!("cannot measure {}", names(&models)))?);
    }
    let after = board.snapshot();
    let unreadable = board.unreadable(&after);
    let version = env!("CARGO_PKG_VERSION").into();
    let report = Report { schema: SCHEMA.into(), version, unix_seconds, machine, before, after, unreadable, results };

    if let Some(path) = &args.html {
        write_atomically_with(path, |out| out.write_all(html::page(&report).as_bytes()).map_err(|e| Error::io(path, e)))?;
    }
    let mut out = std::io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &report)?;
        writeln!(out)?;
    } else if args.csv {
        out.write_all(report.csv().as_bytes())?;
    } else {
        print::report(&mut out, &report)?;
    }
    if args.layers && report.results.iter().all(|r| r.layers.is_empty()) {
        eprintln!("warning: no layer times: tract runs a part of this model (edge-infer inspect says which and why)");
    }
    Ok(ExitCode::SUCCESS)
}

fn names(models: &[PathBuf]) -> String {
    models.iter().map(|m| m.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// Processors and numbers of threads to measure on.
fn places(sweep: bool, run: &RunArgs, clusters: &[Cluster]) -> Vec<(Vec<usize>, usize)> {
    if !sweep {
        let all = std::thread::available_parallelism().map_or(1, usize::from);
        return vec![(vec![], run.threads.map_or(all, usize::from))];
    }
    let mut places = Vec::new();
    for cluster in clusters {
        let most = cluster.cpus.len().min(run.threads.map_or(256, usize::from));
        let powers = (0..).map(|p| 1 << p).take_while(|t| *t < most);
        for threads in powers.chain([most]) {
            places.push((cluster.cpus[..threads].to_vec(), threads));
        }
    }
    let all: Vec<usize> = clusters.iter().flat_map(|c| c.cpus.clone()).collect();
    if clusters.len() > 1 && run.threads.is_none_or(|t| usize::from(t) >= all.len()) {
        // By name, since this program may be kept to the fast ones.
        places.push((all.clone(), all.len()));
    }
    places
}

fn run_compare(args: &CompareArgs) -> anyhow::Result<ExitCode> {
    let read = |path: &Path| -> anyhow::Result<Report> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        Report::parse(&text).map_err(|e| anyhow::anyhow!("{}: {e}", path.display()))
    };
    let comparison = compare(&read(&args.a)?, &read(&args.b)?).map_err(anyhow::Error::msg)?;
    let mut out = std::io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &comparison)?;
        writeln!(out)?;
    } else {
        print::comparison(&mut out, &comparison)?;
    }
    let limit = args.fail_above.map_or(f64::INFINITY, |percent| 1.0 + percent / 100.0);
    let worse = comparison.pairs.iter().filter(|p| p.ratio_interval[0] > limit).count();
    if worse > 0 {
        eprintln!("error: {worse} of {} results are slower by more than {} %", comparison.pairs.len(), args.fail_above.unwrap_or(0.0));
    }
    Ok(ExitCode::from(u8::from(worse > 0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!((duration("10m"), duration("24h")), (Ok(Duration::from_secs(600)), Ok(Duration::from_secs(86_400))));
        for bad in ["", "s", "0s", "10", "1.5m", "25h", "-1s", "5d", "99999999999999999999h", "1ß"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sweeps_go_through_every_cluster() {
        let cluster = |cpus: &[usize]| Cluster { cpus: cpus.to_vec(), ..Cluster::default() };
        let places = |threads, clusters: &[Cluster]| places(true, &RunArgs { threads, cpus: None, require_int8: None }, clusters);
        let threads = |of: Vec<(Vec<usize>, usize)>| of.into_iter().map(|(cpus, t)| (cpus.len(), t)).collect::<Vec<_>>();
        assert_eq!(threads(places(None, &[cluster(&[0, 1, 2, 3])])), [(1, 1), (2, 2), (4, 4)]);
        assert_eq!(threads(places(None, &[cluster(&[4, 5, 6]), cluster(&[0])])), [(1, 1), (2, 2), (3, 3), (1, 1), (4, 4)]);
        assert_eq!(threads(places(Some(2), &[cluster(&[4, 5, 6]), cluster(&[0])])), [(1, 1), (2, 2), (1, 1)]);
    }
}
