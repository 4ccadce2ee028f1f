//! Which layer's quantization costs most: the network runs with one layer's weights and input in int8, all else in float.

use crate::data::Inputs;
use crate::float::Runner;
use crate::onnx::{self, node_name};
use crate::pipeline::{Measured, Options, Prepared, Progress, write};
use crate::plan::Plan;
use crate::report::evaluate;
use crate::{Error, Result};
use serde::Serialize;
use std::collections::HashMap;

/// What quantizing one layer alone costs.
#[derive(Debug, Clone, Serialize)]
pub struct LayerCost {
    /// Its node.
    pub node: String,
    /// The node's name (or output), as `--keep-float` takes it.
    pub name: String,
    /// Signal to noise of the logits, dB; null where exact.
    pub logit_sqnr_db: f64,
    /// Share of inputs with the same top-1 class.
    pub top1_agreement: f64,
    /// Multiply-accumulates.
    pub macs: u64,
}

/// The name by which a node can be asked for.
pub fn short_name(node: &onnx::NodeProto) -> &str {
    if node.name.is_empty() { node.output.first().map_or("", String::as_str) } else { &node.name }
}

/// Measures every Conv and Gemm of the plan on `images`, in order of computation.
pub fn sensitivity(
    p: &Prepared,
    measured: &Measured,
    shape: &[usize],
    inputs: &Inputs,
    images: &[usize],
    options: &Options,
    progress: Progress,
) -> Result<Vec<LayerCost>> {
    let graph = onnx::graph(&p.model)?;
    let skip = graph.output.len();
    let mut layers: Vec<(usize, &String)> = p.plan.weighted.iter().map(|(i, x)| (*i, x)).collect();
    layers.sort_unstable();
    let tick = progress("sensitivity", layers.len() * images.len());
    let float = Runner::new(&p.model, shape, &[])?;
    let weights: HashMap<&str, &[i64]> = graph.initializer.iter().map(|t| (t.name.as_str(), t.dims.as_slice())).collect();
    let mut costs = Vec::with_capacity(layers.len());
    for (i, x) in layers {
        let node = &graph.node[i];
        let alone = Plan { tensors: vec![x.clone()], weighted: HashMap::from([(i, x.clone())]), ..Plan::default() };
        let (int8, _) = write(p, &alone, measured, options)?;
        let (evaluation, _) = evaluate(&float, &Runner::new(&int8, shape, &[])?, skip, 0, inputs, images, &tick)?;
        let size: i64 = weights.get(node.input[1].as_str()).map_or(0, |d| d.iter().product());
        let positions: usize = p.shapes.get(&node.output[0]).and_then(|s| s.get(2..)).map_or(1, |hw| hw.iter().product());
        costs.push(LayerCost {
            node: node_name(node),
            name: short_name(node).to_string(),
            logit_sqnr_db: evaluation.logit_sqnr_db,
            top1_agreement: evaluation.top1_agreement,
            macs: size as u64 * positions as u64,
        });
    }
    Ok(costs)
}

/// The layers to keep float so that at most `budget` (0 … 1) of all multiply-accumulates do: greatest noise per
/// multiply-accumulate first.
pub fn choose_float(costs: &[LayerCost], budget: f64) -> Result<Vec<String>> {
    let total: u64 = costs.iter().map(|c| c.macs).sum();
    if total == 0 {
        return Err(Error::UnsupportedModel("it has no layer whose cost can be measured".into()));
    }
    let noise = |c: &LayerCost| 10f64.powf(-c.logit_sqnr_db / 10.0); // 0 where exact
    let mut order: Vec<&LayerCost> = costs.iter().filter(|c| noise(c) > 0.0).collect();
    order.sort_by(|a, b| (noise(b) / b.macs.max(1) as f64).total_cmp(&(noise(a) / a.macs.max(1) as f64)));
    let mut left = (total as f64 * budget) as u64;
    let mut chosen = Vec::new();
    for c in order {
        if c.macs <= left {
            left -= c.macs;
            chosen.push(c.name.clone());
        }
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_goes_to_the_noisiest_per_operation() {
        let cost = |name: &str, db, macs| LayerCost { node: name.into(), name: name.into(), logit_sqnr_db: db, top1_agreement: 1.0, macs };
        let costs = [cost("a", 30.0, 100), cost("b", 20.0, 100), cost("c", 25.0, 700), cost("d", f64::INFINITY, 100)];
        assert_eq!(choose_float(&costs, 0.1).unwrap(), ["b"]);
        assert_eq!(choose_float(&costs, 0.2).unwrap(), ["b", "a"]);
        assert!(choose_float(&costs, 0.05).unwrap().is_empty());
        assert_eq!(choose_float(&costs, 1.0).unwrap().len(), 3);
    }
}
