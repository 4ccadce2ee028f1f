//! On-device measurement: latency with its spread, layers against the core's peak, and what the computer did meanwhile.
//!
//! A figure without its conditions is worth little on a small board: every measurement carries clocks, temperature,
//! throttling and power, and is *marked* where they say that it was not the board at its best.

pub mod compare;
pub mod html;
pub mod measure;
pub mod monitor;
pub mod report;
pub mod stats;

/// Median of each layer's times, from one row of times an inference. Nothing where tract runs a part of the model.
pub fn layers(
    model: &mut crate::model::Model,
    input: &[f32],
    runs: usize,
    peak_gmacs_per_s: Option<f64>,
) -> crate::Result<Vec<report::Layer>> {
    let (mut steps, mut times) = (Vec::<Vec<f64>>::new(), Vec::new());
    for _ in 0..runs.max(1) {
        model.run_profiled(input, &mut times)?;
        steps.resize_with(times.len(), Vec::new);
        steps.iter_mut().zip(&times).for_each(|(step, t)| step.push(t.as_secs_f64() * 1e3));
    }
    let report = model.report();
    let medians: Vec<f64> = steps.into_iter().map(|mut s| stats::median(&mut s)).collect();
    let total: f64 = medians.iter().sum();
    let peak = peak_gmacs_per_s.map(|p| p * report.threads as f64);
    let layers = report.nodes.into_iter().zip(medians).map(|(node, median_ms)| {
        let gmacs_per_s = node.macs as f64 / median_ms / 1e6;
        report::Layer {
            name: node.name,
            op: node.op,
            runs_on: node.runs_on,
            macs: node.macs,
            weight_bytes: node.weight_bytes,
            median_ms,
            share: median_ms / total,
            gmacs_per_s,
            share_of_peak: peak.filter(|_| node.macs > 0).map(|p| gmacs_per_s / p),
        }
    });
    Ok(layers.collect())
}
