//! Functions of one byte, by a table of 256: another quantization for the same values, and every unary function.
#![allow(unsafe_code)]

use super::reference::{Inputs, Results};
use super::{Cost, Operator, Planner, Site, Step};
use crate::graph::{Clamp, QuantParams, Shape};
use crate::program::{AnyBlob, Blob, Buffer, Check, Checker, Context, StepOp, ensure};
use serde::{Deserialize, Serialize};

/// Another scale, zero point or range for the same values: `f32(x − zp)·s_x / s_y`.
#[derive(Debug, Clone)]
pub struct Requantize {
    /// Fused activation.
    pub clamp: Clamp,
}

/// A function of one real value, computed in f32.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Function {
    /// 1 / (1 + e⁻ˣ)
    Sigmoid,
    /// max(0, min(1, alpha · x + beta))
    HardSigmoid {
        /// Slope.
        alpha: f32,
        /// Value at 0.
        beta: f32,
    },
}

/// What [`Map`] does to each real value: g(x), or x · g(x).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mapping {
    /// g.
    pub function: Function,
    /// Multiply by x (SiLU, HardSwish).
    pub gated: bool,
    /// How g's value is rounded before it is multiplied, if it is.
    pub rounded: Option<QuantParams>,
}

impl Mapping {
    /// Its value at `x`.
    pub fn at(&self, x: f32) -> f32 {
        let g = match self.function {
            Function::Sigmoid => (1.0 / (1.0 + f64::from(-x).exp())) as f32,
            Function::HardSigmoid { alpha, beta } => (alpha * x + beta).clamp(0.0, 1.0),
        };
        let g = self.rounded.map_or(g, |q| {
            let (min, max) = q.dtype.range();
            let zero = q.zero_point as f32;
            (((g / q.scale).round_ties_even() + zero).clamp(min as f32, max as f32) - zero) * q.scale
        });
        if self.gated { x * g } else { g }
    }
}

/// A function of each value: `f(f32(x − zp)·s_x) / s_y`.
#[derive(Debug, Clone)]
pub struct Map {
    /// The function.
    pub map: Mapping,
    /// Fused activation.
    pub clamp: Clamp,
}

impl Operator for Requantize {
    fn name(&self) -> &'static str {
        "Requantize"
    }

    fn shape(&self, inputs: &[Shape]) -> Result<Shape, String> {
        Ok(inputs[0])
    }

    fn plan(&self, site: &Site<'_>, p: &mut Planner<'_>) -> crate::Result<()> {
        plan(site, p, self.clamp, |x| x)
    }

    fn reference(&self, inputs: &Inputs<'_>) -> Results {
        reference(inputs, self.clamp, |x| x)
    }
}

impl Operator for Map {
    fn name(&self) -> &'static str {
        match (self.map.function, self.map.gated) {
            (Function::Sigmoid, false) => "Sigmoid",
            (Function::Sigmoid, true) => "SiLU",
            (Function::HardSigmoid { .. }, false) => "HardSigmoid",
            (Function::HardSigmoid { .. }, true) => "HardSwish",
        }
    }

    fn shape(&self, inputs: &[Shape]) -> Result<Shape, String> {
        Ok(inputs[0])
    }

    fn plan(&self, site: &Site<'_>, p: &mut Planner<'_>) -> crate::Result<()> {
        plan(site, p, self.clamp, |x| self.map.at(x))
    }

    fn reference(&self, inputs: &Inputs<'_>) -> Results {
        reference(inputs, self.clamp, |x| self.map.at(x))
    }
}

fn plan(site: &Site<'_>, p: &mut Planner<'_>, clamp: Clamp, f: impl Fn(f32) -> f32) -> crate::Result<()> {
    let out = site.out()?;
    let step = LookupStep { src: p.src(site, 0), dst: p.buffers[out], table: p.table(site.inputs[0], out, clamp, f) };
    p.emit(site, Step::Lookup(step), "lookup", Cost::default());
    Ok(())
}

fn reference(inputs: &Inputs<'_>, clamp: Clamp, f: impl Fn(f32) -> f32) -> Results {
    let mut out = inputs.sink(clamp, inputs.values[0].shape);
    let (x, y) = (inputs.quants[0].scale, out.quant.scale);
    for q in inputs.all(0) {
        let v = f(q as f32 * x);
        out.push(v / y, f64::from(v) / f64::from(y));
    }
    out.done()
}

/// Any function of one byte.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct LookupStep {
    /// Input.
    pub src: Buffer,
    /// Output.
    pub dst: Buffer,
    /// Result of each byte.
    #[serde(skip)]
    pub table: Blob<u8>,
}

impl StepOp for LookupStep {
    fn check(&self, c: &Checker<'_>) -> Check {
        c.buffers(&self.dst, &[&self.src])?;
        ensure(self.table.len() == 256, "its table has no 256 entries")?;
        ensure(self.src.shape == self.dst.shape, "input and output differ in shape")
    }

    #[inline(always)]
    unsafe fn run(&self, cx: &Context<'_>) {
        let (src, dst) = (&self.src, &self.dst);
        let Some(table) = self.table.first_chunk::<256>() else { return };
        let spans = dst.spans().and(src.spans());
        for y in cx.share(dst.shape[0]) {
            for x in (0..spans.count).map(|s| s * spans.pixels) {
                // SAFETY: rows are shared out, and both have this shape.
                let (from, to) = unsafe { (cx.read(src, y, x, spans.bytes), cx.write(dst, y, x, spans.bytes)) };
                to.iter_mut().zip(from).for_each(|(o, &t)| *o = table[usize::from(t)]);
            }
        }
    }

    fn dst(&self) -> Option<&Buffer> {
        Some(&self.dst)
    }

    fn blobs(&mut self) -> Vec<&mut dyn AnyBlob> {
        vec![&mut self.table]
    }
}
