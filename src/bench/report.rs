//! What `edge-infer bench --json` prints: the schema of version 1. Fields are added, never changed; see [`SCHEMA`].

use super::monitor::Conditions;
use super::stats::{Histogram, Latency};
use crate::board::{Machine, Snapshot};
use serde::{Deserialize, Serialize};

/// Value of [`Report::schema`]. A change that old readers would misunderstand gets another one.
pub const SCHEMA: &str = "edge-infer-bench/1";

/// A benchmark: where, when, how, and its results.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: String,
    /// Of edge-infer.
    pub version: String,
    /// When it began, seconds since 1970.
    pub unix_seconds: u64,
    /// The computer.
    pub machine: Machine,
    /// Its sensors before.
    pub before: Snapshot,
    /// Its sensors after.
    pub after: Snapshot,
    /// What could not be read, and where it was looked for.
    pub unreadable: Vec<String>,
    /// One for each model, number of threads and cluster.
    pub results: Vec<Measurement>,
}

/// One model on so many threads.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// Path of the file.
    pub model: String,
    /// Instruction set of the kernels; `tract` where none of ours runs.
    pub isa: String,
    /// Threads of the integer kernels. tract runs float models on one.
    pub threads: usize,
    /// Processors that it was kept to; empty where it could use all.
    pub cpus: Vec<usize>,
    /// Inferences before the timed ones.
    pub warmup: u32,
    /// Timed inferences.
    pub runs: u64,
    /// Why there were no more: `runs`, `confidence` or `time`.
    pub stopped_by: String,
    /// From opening the file to a model ready to run.
    pub load_ms: f64,
    /// The first inference: caches and memory are cold.
    pub first_inference_ms: f64,
    /// Largest resident memory so far: since this model began to load where the kernel lets that be asked, else of the process.
    pub peak_rss_bytes: Option<u64>,
    /// Page faults until the first inference was done: without and with reading a disk.
    pub cold_faults: Option<[u64; 2]>,
    /// The same during the timed inferences.
    pub run_faults: Option<[u64; 2]>,
    /// Timed inferences, the input's conversion to int8 included, decoding and resizing of pictures not.
    pub latency_ms: Latency,
    /// The same.
    pub histogram: Histogram,
    /// Multiply-accumulates of the int8 part.
    pub int8_macs: u64,
    /// Giga of them a second, at the median.
    pub int8_gmacs_per_s: f64,
    /// What one core could do at most, measured: see `edge_infer::kernels::peak`. With `--layers` only.
    pub peak_gmacs_per_s: Option<f64>,
    /// Layers, where all of the model is int8; with `--layers` only, measured in inferences of their own.
    pub layers: Vec<Layer>,
    /// The board during the timed inferences.
    pub conditions: Conditions,
    /// Why the board was not at its best.
    pub marks: Vec<String>,
    /// Parts of a `--sustained` measurement, in order.
    pub sustained: Vec<Interval>,
}

/// One operation of the int8 program.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Layer {
    /// ONNX node.
    pub name: String,
    /// Operator.
    pub op: String,
    /// Kernel.
    pub runs_on: String,
    /// Multiply-accumulates, as direct convolution has them.
    pub macs: u64,
    /// Packed weights.
    pub weight_bytes: u64,
    /// Waiting for the slowest thread included.
    pub median_ms: f64,
    /// Of the sum of all layers' medians.
    pub share: f64,
    /// Giga multiply-accumulates a second.
    pub gmacs_per_s: f64,
    /// Of the peak of all threads' cores; above 1 where Winograd saves products.
    pub share_of_peak: Option<f64>,
}

/// A part of a sustained measurement.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Since the beginning.
    pub start_s: f64,
    /// Its length.
    pub seconds: f64,
    /// Inferences.
    pub runs: u64,
    /// Of their latencies.
    pub median_ms: f64,
    /// Of their latencies.
    pub p99_ms: f64,
    /// The board meanwhile.
    pub conditions: Conditions,
    /// Why the board was not at its best: a clock below the highest one seen in the whole measurement counts as dropped.
    pub marks: Vec<String>,
}

impl Report {
    /// Reads what `bench --json` printed.
    pub fn parse(text: &str) -> Result<Report, String> {
        let schema = |v: serde_json::Value| v.get("schema").and_then(|s| s.as_str()).map(String::from);
        let value: serde_json::Value = serde_json::from_str(text).map_err(|e| format!("not JSON: {e}"))?;
        match schema(value) {
            Some(s) if s == SCHEMA => serde_json::from_str(text).map_err(|e| e.to_string()),
            Some(s) => Err(format!("schema {s:?}; this program reads {SCHEMA:?}")),
            None => Err("no output of `edge-infer bench --json`: it has no schema".into()),
        }
    }

    /// A table with one line for each result, for spreadsheets (RFC 4180).
    pub fn csv(&self) -> String {
        let mut out = String::from(
            "model,isa,threads,cpus,runs,load_ms,first_inference_ms,min_ms,median_ms,median_low_ms,median_high_ms,mean_ms,sd_ms,\
             p90_ms,p95_ms,p99_ms,max_ms,int8_gmacs_per_s,peak_rss_bytes,mhz_low,mhz_mean,mhz_high,celsius,marks\r\n",
        );
        let quoted = |s: &str| format!("\"{}\"", s.replace('"', "\"\""));
        let maybe = |v: Option<f64>| v.map_or(String::new(), |v| v.to_string());
        for r in &self.results {
            let l = &r.latency_ms;
            let cpus = r.cpus.iter().map(usize::to_string).collect::<Vec<_>>().join(" ");
            let mhz = |i: usize| maybe(r.conditions.mhz.map(|m| m[i]));
            let numbers = [
                r.load_ms,
                r.first_inference_ms,
                l.min,
                l.median,
                l.median_ci95[0],
                l.median_ci95[1],
                l.mean,
                l.sd,
                l.p90,
                l.p95,
                l.p99,
                l.max,
                r.int8_gmacs_per_s,
            ];
            let fields = [quoted(&r.model), r.isa.clone(), r.threads.to_string(), cpus, r.runs.to_string()]
                .into_iter()
                .chain(numbers.map(|n| n.to_string()))
                .chain([r.peak_rss_bytes.map_or(String::new(), |b| b.to_string()), mhz(0), mhz(1), mhz(2), maybe(r.conditions.celsius)])
                .chain([quoted(&r.marks.join("; "))]);
            out += &fields.collect::<Vec<_>>().join(",");
            out += "\r\n";
        }
        out
    }
}
