//! Fully connected layers.
#![allow(unsafe_code)]

use super::reference::{Inputs, Results};
use super::{Cost, Operator, Planner, Site, Step};
use crate::graph::{Clamp, Shape, Weights};
use crate::kernels::{Domain, Requant};
use crate::program::{AnyBlob, Blob, Buffer, Check, Checker, Context, StepOp, ensure};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Fully connected layer over all values of one image (ONNX `Gemm`, or `MatMul` of a vector).
#[derive(Debug, Clone)]
pub struct Gemm {
    /// Weights.
    pub weights: Arc<Weights>,
    /// Fused activation of a quantized result.
    pub clamp: Clamp,
    /// ONNX name of the float result, if it leaves the region unquantized.
    pub float_output: Option<String>,
}

impl Operator for Gemm {
    fn name(&self) -> &'static str {
        "Gemm"
    }

    fn shape(&self, inputs: &[Shape]) -> Result<Shape, String> {
        let (values, per_out) = (inputs[0].values(), self.weights.per_out);
        if values != per_out {
            return Err(format!("{per_out} inputs per output do not match {values} input values"));
        }
        Ok(Shape::vector(self.weights.out))
    }

    fn target(&self) -> Option<&str> {
        self.float_output.as_deref()
    }

    fn plan(&self, site: &Site<'_>, p: &mut Planner<'_>) -> crate::Result<()> {
        let (src, weights) = (p.src(site, 0), &*self.weights);
        let x = p.quant(site.inputs[0]).scale;
        let bias = (0..weights.out).map(|o| site.fold_bias(weights, o, src.zero_point)).collect::<crate::Result<Vec<_>>>()?;
        let (scale, output): (Vec<f32>, _) = match (&self.float_output, site.output) {
            (Some(name), _) => {
                let target = p.target(name, vec![1, weights.out]);
                (weights.scale.iter().map(|s| x * s).collect(), GemmOutput::Float { target })
            }
            (None, _) => {
                let out = site.out()?;
                let y = p.quant(out).scale;
                let output = GemmOutput::Quantized { dst: p.buffers[out], requant: p.requant(out, self.clamp) };
                (weights.scale.iter().map(|s| x * s / y).collect(), output)
            }
        };
        site.check_multipliers(&scale)?;
        let data = pack(weights, &src);
        let cost = Cost { macs: weights.data.len() as u64, weight_bytes: (data.len() + 8 * weights.out) as u64 };
        let step = GemmStep { src, weights: data.into(), bias: bias.into(), scale: scale.into(), output };
        p.emit(site, Step::Gemm(step), "gemm", cost);
        Ok(())
    }

    fn reference(&self, inputs: &Inputs<'_>) -> Results {
        let (w, x) = (&self.weights, inputs.quants[0].scale);
        let acc: Vec<i64> =
            (0..w.out).map(|o| i64::from(w.bias[o]) + inputs.all(0).zip(w.row(o)).map(|(q, &w)| q * i64::from(w)).sum::<i64>()).collect();
        if self.float_output.is_some() {
            return Results::Float(acc.iter().zip(&w.scale).map(|(&a, s)| a as f32 * (x * s)).collect());
        }
        let mut out = inputs.sink(self.clamp, Shape::vector(w.out));
        let y = out.quant.scale;
        for (&a, &s) in acc.iter().zip(&w.scale) {
            out.push(a as f32 * (x * s / y), a as f64 * f64::from(x) * f64::from(s) / f64::from(y));
        }
        out.done()
    }
}

/// Weights in the order in which the arena holds the input; zeros where that has a halo, or other tensors' channels.
fn pack(weights: &Weights, src: &Buffer) -> Vec<i8> {
    let [h, w, c] = src.shape;
    let mut data = vec![0i8; weights.out * src.len()];
    for (o, packed) in data.chunks_exact_mut(src.len()).enumerate() {
        let row = weights.row(o);
        for (y, x) in (0..h).flat_map(|y| (0..w).map(move |x| (y, x))) {
            let at = src.at(y, x) - src.base;
            for ch in 0..c {
                // ONNX flattens C, H, W.
                packed[at + ch] = row[(ch * h + y) * w + x];
            }
        }
    }
    data
}

/// What a fully connected layer makes.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum GemmOutput {
    /// `f32(acc) · scale[c]` into a float target.
    Float {
        /// Index of the target.
        target: usize,
    },
    /// Requantized with `scale[c]` as multiplier.
    Quantized {
        /// Output.
        dst: Buffer,
        /// Requantization.
        requant: Requant,
    },
}

/// Fully connected.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct GemmStep {
    /// Input.
    pub src: Buffer,
    /// `[out][bytes of the input]`.
    #[serde(skip)]
    pub weights: Blob<i8>,
    /// Zero-point correction included.
    #[serde(skip)]
    pub bias: Blob<i32>,
    /// One per output.
    #[serde(skip)]
    pub scale: Blob<f32>,
    /// Result.
    pub output: GemmOutput,
}

impl StepOp for GemmStep {
    fn check(&self, c: &Checker<'_>) -> Check {
        c.buffer(&self.src)?;
        let outputs = self.bias.len();
        let sizes = outputs.checked_mul(self.src.len()) == Some(self.weights.len()) && self.scale.len() == outputs;
        ensure(sizes, "its weights have another size")?;
        match &self.output {
            GemmOutput::Float { target } => Checker::port(c.targets, *target, outputs),
            GemmOutput::Quantized { dst, requant } => {
                c.buffers(dst, &[&self.src])?;
                c.requant(requant)?;
                // All of its input is read, what lies between the channels of a view included.
                ensure(
                    self.src.base + self.src.len() <= dst.base || dst.base + dst.len() <= self.src.base,
                    "its output lies in its input",
                )?;
                ensure(dst.shape == [1, 1, outputs], "its output has another size")
            }
        }
    }

    #[inline(always)]
    unsafe fn run(&self, cx: &Context<'_>) {
        // SAFETY: outputs are shared out; the input is read as it lies.
        unsafe {
            let x = std::slice::from_raw_parts(cx.memory.arena.add(self.src.base), self.src.len());
            for o in cx.share(self.bias.len()) {
                let w = &self.weights[o * x.len()..][..x.len()];
                let v = self.bias[o].wrapping_add(dot(cx.kernel.domain, x, w)) as f32 * self.scale[o];
                match &self.output {
                    GemmOutput::Float { target } => *(*cx.memory.outputs.add(*target)).add(o) = v,
                    GemmOutput::Quantized { dst, requant } => *cx.at(dst, 0, 0).add(o) = requant.quantize(v),
                }
            }
        }
    }

    fn dst(&self) -> Option<&Buffer> {
        match &self.output {
            GemmOutput::Quantized { dst, .. } => Some(dst),
            GemmOutput::Float { .. } => None,
        }
    }

    fn blobs(&mut self) -> Vec<&mut dyn AnyBlob> {
        vec![&mut self.weights, &mut self.bias, &mut self.scale]
    }
}

/// Sum of products, modulo 2³²: a planned program's fits, a forged one's may not. The domain is told apart outside the loops: compilers
/// multiply bytes faster than what may be either.
#[inline(always)]
fn dot(domain: Domain, x: &[u8], w: &[i8]) -> i32 {
    let add = |sum: i32, product: i32| sum.wrapping_add(product);
    match domain {
        Domain::U8 => x.iter().zip(w).map(|(&x, &w)| i32::from(x) * i32::from(w)).fold(0, add),
        Domain::S8 => x.iter().zip(w).map(|(&x, &w)| i32::from(x as i8) * i32::from(w)).fold(0, add),
    }
}
