//! `bench`: latency of a model, measured with fixed counts.

use super::{RunArgs, median};
use clap::Args;
use edge_infer::report::NodeReport;
use serde::Serialize;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Measures the latency of a model on a fixed input, preprocessing not included.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  edge-infer bench --model r18q.onnx --threads 1\n  edge-infer bench --model r18q.onnx --runs 200 --layers --json"
)]
pub struct BenchArgs {
    /// ONNX model, int8 QDQ or float.
    #[arg(short, long)]
    model: PathBuf,
    /// Timed inferences, exactly.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    runs: u32,
    /// Inferences before the timed ones, exactly.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    warmup: u32,
    /// Time every layer of a model that is all int8 (slower by some clock readings).
    #[arg(long)]
    layers: bool,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Bench {
    model: String,
    isa: String,
    threads: usize,
    warmup: u32,
    runs: u32,
    /// From opening the file to a model ready to run.
    load_ms: f64,
    latency_ms: Latency,
    /// Giga multiply-accumulates a second of the int8 part, at the median.
    int8_gmacs_per_s: f64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    layers: Vec<Layer>,
}

#[derive(Serialize)]
struct Latency {
    min: f64,
    median: f64,
    p90: f64,
    p95: f64,
    p99: f64,
    max: f64,
}

#[derive(Serialize)]
struct Layer {
    name: String,
    op: String,
    runs_on: String,
    macs: u64,
    median_ms: f64,
    /// Of the sum of all layers' medians.
    share: f64,
}

pub fn run(args: &BenchArgs, run: &RunArgs) -> anyhow::Result<ExitCode> {
    let start = Instant::now();
    let mut model = run.load(&args.model)?;
    let load_ms = ms(start.elapsed());
    let input = fixed_input(model.input_shape().iter().product());
    for _ in 0..args.warmup {
        model.run(&input)?;
    }
    let mut samples = Vec::with_capacity(args.runs as usize);
    let mut steps: Vec<Vec<f64>> = Vec::new();
    let mut times = Vec::new();
    for _ in 0..args.runs {
        let start = Instant::now();
        if args.layers {
            model.run_profiled(&input, &mut times)?
        } else {
            model.run(&input)?
        };
        samples.push(ms(start.elapsed()));
        steps.resize_with(times.len(), Vec::new);
        steps.iter_mut().zip(&times).for_each(|(step, &t)| step.push(ms(t)));
    }
    let report = model.report();
    let latency_ms = latency(&mut samples);
    let bench = Bench {
        model: report.model,
        isa: report.isa,
        threads: report.threads,
        warmup: args.warmup,
        runs: args.runs,
        load_ms,
        int8_gmacs_per_s: report.int8_macs as f64 / latency_ms.median / 1e6,
        latency_ms,
        layers: layers(&report.nodes, steps),
    };
    if args.layers && bench.layers.is_empty() {
        eprintln!("warning: no layer times: tract runs a part of this model (edge-infer inspect says which and why)");
    }
    let mut out = std::io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &bench)?;
        writeln!(out)?;
    } else {
        print(&mut out, &bench)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Reproducible values of about the spread of a normalised picture.
fn fixed_input(len: usize) -> Vec<f32> {
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

fn latency(samples: &mut [f64]) -> Latency {
    let median = median(samples);
    // `median` sorts. Nearest rank: the smallest sample that is not below `p` per cent of all.
    let rank = |p: usize| samples[(samples.len() * p).div_ceil(100).clamp(1, samples.len()) - 1];
    Latency { min: samples[0], median, p90: rank(90), p95: rank(95), p99: rank(99), max: samples[samples.len() - 1] }
}

fn layers(nodes: &[NodeReport], steps: Vec<Vec<f64>>) -> Vec<Layer> {
    let medians: Vec<f64> = steps.into_iter().map(|mut s| median(&mut s)).collect();
    let total: f64 = medians.iter().sum();
    let layer = |(node, median_ms): (&NodeReport, f64)| Layer {
        name: node.name.clone(),
        op: node.op.clone(),
        runs_on: node.runs_on.clone(),
        macs: node.macs,
        median_ms,
        share: median_ms / total,
    };
    nodes.iter().zip(medians).map(layer).collect()
}

fn print(out: &mut impl Write, b: &Bench) -> std::io::Result<()> {
    if !b.layers.is_empty() {
        let width = b.layers.iter().map(|l| l.name.chars().count()).max().unwrap_or(0);
        writeln!(out, "{:width$}  {:11}  {:>8}  {:>9}  {:>6}  {:>7}", "layer", "operator", "MMAC", "ms", "%", "GMAC/s")?;
        for l in &b.layers {
            writeln!(
                out,
                "{:width$}  {:11}  {:8.1}  {:9.4}  {:6.1}  {:7.1}",
                l.name,
                l.op,
                l.macs as f64 / 1e6,
                l.median_ms,
                100.0 * l.share,
                l.macs as f64 / l.median_ms / 1e6
            )?;
        }
        writeln!(out)?;
    }
    let l = &b.latency_ms;
    writeln!(
        out,
        "{}: {} kernels, {} threads, {} runs after {} warm-ups; loaded in {:.1} ms",
        b.model, b.isa, b.threads, b.runs, b.warmup, b.load_ms
    )?;
    writeln!(
        out,
        "min {:.3} ms, median {:.3}, p90 {:.3}, p95 {:.3}, p99 {:.3}, max {:.3}; int8 {:.1} GMAC/s",
        l.min, l.median, l.p90, l.p95, l.p99, l.max, b.int8_gmacs_per_s
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_rank() {
        let mut samples: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        let l = latency(&mut samples);
        assert_eq!((l.min, l.median, l.p90, l.p95, l.p99, l.max), (1.0, 100.5, 180.0, 190.0, 198.0, 200.0));
        let l = latency(&mut [7.0]);
        assert_eq!((l.min, l.median, l.p90, l.p99, l.max), (7.0, 7.0, 7.0, 7.0, 7.0));
    }

    #[test]
    fn the_input_is_fixed_and_looks_like_a_normalised_picture() {
        let x = fixed_input(10_000);
        assert_eq!(x, fixed_input(10_000));
        let mean = x.iter().sum::<f32>() / 10_000.0;
        assert!(mean.abs() < 0.05 && x.iter().all(|v| (-2.0..2.0).contains(v)), "{mean}");
        assert!(x.iter().any(|&v| v > 1.9) && x.iter().any(|&v| v < -1.9));
    }
}
