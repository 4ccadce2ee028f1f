//! Two benchmarks side by side: is B faster than A, beyond their noise?

use super::report::{Measurement, Report};
use serde::Serialize;

/// One result of each report, under the same circumstances.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Pair {
    /// Model, or both models.
    pub name: String,
    /// Threads of both.
    pub threads: usize,
    /// Processors of both.
    pub cpus: Vec<usize>,
    /// Medians, ms.
    pub median_ms: [f64; 2],
    /// B's median over A's.
    pub ratio: f64,
    /// Bounds of the ratio, from the 95 % intervals of both medians: at least 90 % confident.
    pub ratio_interval: [f64; 2],
    /// `faster`, `slower` or `same`: B against A.
    pub verdict: &'static str,
    /// What was wrong with either.
    pub marks: Vec<String>,
    /// Layers of both by name, the one with the largest difference first: A's and B's ms.
    pub layers: Vec<(String, f64, f64)>,
}

/// What two reports have in common.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// In A's order.
    pub pairs: Vec<Pair>,
    /// Circumstances that differ: comparing is on the reader's own account.
    pub differences: Vec<String>,
}

/// Compares results with the same model, threads and processors; where each report has one model only, the models may differ.
pub fn compare(a: &Report, b: &Report) -> Result<Comparison, String> {
    let models = |r: &Report| {
        let mut names: Vec<_> = r.results.iter().map(|m| m.model.clone()).collect();
        names.dedup();
        names
    };
    let any_model = models(a).len() == 1 && models(b).len() == 1;
    let alike = |x: &Measurement, y: &Measurement| {
        x.threads == y.threads && x.cpus == y.cpus && (any_model || file_name(&x.model) == file_name(&y.model))
    };
    let pairs: Vec<Pair> = a.results.iter().filter_map(|x| b.results.iter().find(|y| alike(x, y)).map(|y| pair(x, y))).collect();
    if pairs.is_empty() {
        return Err("the two have no result in common: same model, threads and processors".into());
    }
    let mut differences = Vec::new();
    let mut differ = |what: &str, x: String, y: String| {
        if x != y {
            differences.push(format!("{what}: {x}, then {y}"));
        }
    };
    let name = |r: &Report| r.machine.model.clone().unwrap_or_else(|| "unknown".into());
    differ("machine", name(a), name(b));
    differ("architecture", a.machine.arch.clone(), b.machine.arch.clone());
    differ("version", a.version.clone(), b.version.clone());
    differ("governor", a.before.governor.clone().unwrap_or_default(), b.before.governor.clone().unwrap_or_default());
    let kernels = |r: &Report| r.results.first().map(|m| m.isa.clone()).unwrap_or_default();
    differ("kernels", kernels(a), kernels(b));
    Ok(Comparison { pairs, differences })
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn pair(a: &Measurement, b: &Measurement) -> Pair {
    let ([a_low, a_high], [b_low, b_high]) = (a.latency_ms.median_ci95, b.latency_ms.median_ci95);
    let ratio_interval = [b_low / a_high, b_high / a_low];
    let verdict = match ratio_interval {
        [_, high] if high < 1.0 => "faster",
        [low, _] if low > 1.0 => "slower",
        _ => "same",
    };
    let (x, y) = (file_name(&a.model), file_name(&b.model));
    let marks = |side: &str, m: &Measurement| m.marks.iter().map(|mark| format!("{side}: {mark}")).collect::<Vec<_>>();
    let in_b = |name: &str| b.layers.iter().find(|l| l.name == name).map(|l| l.median_ms);
    let mut layers: Vec<_> = a.layers.iter().filter_map(|l| Some((l.name.clone(), l.median_ms, in_b(&l.name)?))).collect();
    layers.sort_by(|p, q| (q.2 - q.1).abs().total_cmp(&(p.2 - p.1).abs()));
    Pair {
        name: if x == y { x.into() } else { format!("{x} → {y}") },
        threads: a.threads,
        cpus: a.cpus.clone(),
        median_ms: [a.latency_ms.median, b.latency_ms.median],
        ratio: b.latency_ms.median / a.latency_ms.median,
        ratio_interval,
        verdict,
        marks: [marks("A", a), marks("B", b)].concat(),
        layers,
    }
}

#[cfg(test)]
mod tests {
    use super::super::stats::Latency;
    use super::*;
    use crate::board::{Machine, Snapshot};

    fn report(results: &[(&str, usize, [f64; 3])]) -> Report {
        let result = |&(model, threads, [low, median, high]): &(&str, usize, [f64; 3])| Measurement {
            model: model.into(),
            threads,
            latency_ms: Latency { median, median_ci95: [low, high], ..Latency::default() },
            ..Measurement::default()
        };
        Report {
            schema: super::super::report::SCHEMA.into(),
            version: "1".into(),
            unix_seconds: 0,
            machine: Machine::default(),
            before: Snapshot::default(),
            after: Snapshot::default(),
            unreadable: vec![],
            results: results.iter().map(result).collect(),
        }
    }

    #[test]
    fn verdicts_need_intervals_that_do_not_touch() {
        let a = report(&[("m/a.onnx", 1, [9.9, 10.0, 10.1]), ("m/a.onnx", 2, [5.0, 5.5, 6.0])]);
        let b = report(&[("a.onnx", 2, [5.1, 5.4, 5.7]), ("a.onnx", 1, [8.0, 8.1, 8.2])]);
        let c = compare(&a, &b).unwrap();
        let verdicts: Vec<_> = c.pairs.iter().map(|p| (p.threads, p.verdict)).collect();
        assert_eq!((verdicts, c.differences.len()), (vec![(1, "faster"), (2, "same")], 0));
        assert_eq!(compare(&b, &a).unwrap().pairs[1].verdict, "slower");
        assert!(compare(&a, &report(&[("a.onnx", 3, [1.0; 3])])).is_err());
    }
}
