//! A network as a table: per layer its shape, parameters and multiply-accumulates.

use crate::network::{Network, Op, Shape};
use serde::Serialize;
use std::fmt;

/// The whole table.
#[derive(Debug, Serialize)]
pub struct Summary {
    /// Architecture.
    pub arch: String,
    /// C×H×W.
    pub input: Shape,
    /// Rows in order of computation.
    pub layers: Vec<Row>,
    /// Parameters as PyTorch counts them: without BatchNorm's running statistics.
    pub parameters: u64,
    /// Multiply-accumulates of convolutions and the classifier, one picture.
    pub macs: u64,
}

/// One layer.
#[derive(Debug, Serialize)]
pub struct Row {
    /// Module path.
    pub name: String,
    /// Operation and geometry.
    #[serde(flatten)]
    pub op: Op,
    /// C×H×W of the result.
    pub output: Shape,
    /// Parameters.
    pub parameters: u64,
    /// Multiply-accumulates.
    pub macs: u64,
}

impl Summary {
    /// Makes the table.
    pub fn new(network: &Network) -> Summary {
        let size = network.config.size;
        let row = |l: &crate::network::Layer| Row {
            name: l.name.clone(),
            op: l.op,
            output: l.output,
            parameters: l.parameter_count(),
            macs: l.macs(),
        };
        Summary {
            arch: network.config.arch.name(),
            input: [3, size, size],
            layers: network.layers.iter().map(row).collect(),
            parameters: network.parameter_count(),
            macs: network.macs(),
        }
    }
}

/// `1234567` → `1,234,567`.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, d) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(d);
    }
    out
}

fn describe(op: Op) -> String {
    match op {
        Op::Conv { kernel, stride, dilation, groups, .. } => {
            let mut text = format!("conv {kernel}×{kernel}");
            for (name, value) in [("stride", stride), ("dilation", dilation), ("groups", groups)] {
                if value != 1 {
                    text += &format!(" {name} {value}");
                }
            }
            text
        }
        Op::BatchNorm => "batch norm".into(),
        Op::Relu => "relu".into(),
        Op::MaxPool => "max pool 3×3 stride 2".into(),
        Op::Add => "add".into(),
        Op::GlobalAveragePool => "average".into(),
        Op::Flatten => "flatten".into(),
        Op::Linear => "linear".into(),
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let shape = |s: Shape| if s[1..] == [1, 1] { s[0].to_string() } else { s.map(|d| d.to_string()).join("×") };
        let count = |n: u64| if n == 0 { "-".into() } else { grouped(n) };
        writeln!(f, "{:<26} {:<34} {:>14} {:>12} {:>15}", "layer", "operation", "output", "parameters", "MACs")?;
        for r in &self.layers {
            writeln!(f, "{:<26} {:<34} {:>14} {:>12} {:>15}", r.name, describe(r.op), shape(r.output), count(r.parameters), count(r.macs))?;
        }
        write!(
            f,
            "\n{}: input {}, {} parameters ({:.1} MB as float32), {:.3} GMAC",
            self.arch,
            shape(self.input),
            grouped(self.parameters),
            self.parameters as f64 * 4.0 / 1e6,
            self.macs as f64 / 1e9
        )
    }
}
