//! Product of two tensors.
#![allow(unsafe_code)]

use super::reference::{Inputs, Results};
use super::{Cost, Operator, Planner, Site, Step, broadcast};
use crate::graph::{Clamp, Shape};
use crate::kernels::Requant;
use crate::program::{Buffer, Check, Checker, Context, StepOp};
use serde::{Deserialize, Serialize};

/// ONNX `Mul` of two tensors, of which one may have fewer values (a gate for each channel, `[1, C, 1, 1]`):
/// `f32((a − zp_a)·(b − zp_b)) · (s_a·s_b / s_y)`, the multiplier in f32 from left to right, as ONNX Runtime's QLinearMul has it.
#[derive(Debug, Clone)]
pub struct Mul {
    /// Fused activation.
    pub clamp: Clamp,
}

impl Operator for Mul {
    fn name(&self) -> &'static str {
        "Mul"
    }

    fn shape(&self, inputs: &[Shape]) -> Result<Shape, String> {
        broadcast::shape(inputs)
    }

    fn plan(&self, site: &Site<'_>, p: &mut Planner<'_>) -> crate::Result<()> {
        let out = site.out()?;
        let mult = p.quant(site.inputs[0]).scale * p.quant(site.inputs[1]).scale / p.quant(out).scale;
        site.check_multipliers(&[mult])?;
        let step = MulStep { src: [p.src(site, 0), p.src(site, 1)], mult, dst: p.buffers[out], requant: p.requant(out, self.clamp) };
        p.emit(site, Step::Mul(step), "mul", Cost::default());
        Ok(())
    }

    fn reference(&self, inputs: &Inputs<'_>) -> Results {
        let shape = broadcast::shape(&[inputs.values[0].shape, inputs.values[1].shape]).expect("inputs that fit");
        let mut out = inputs.sink(self.clamp, shape);
        let (a, b, y) = (inputs.quants[0].scale, inputs.quants[1].scale, out.quant.scale);
        let exact = f64::from(a) * f64::from(b) / f64::from(y);
        for (qa, qb) in broadcast::pairs(inputs, shape) {
            out.push((qa * qb) as f32 * (a * b / y), (qa * qb) as f64 * exact);
        }
        out.done()
    }
}

/// `f32((a − zp_a)·(b − zp_b)) · mult`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct MulStep {
    /// Inputs.
    pub src: [Buffer; 2],
    /// Product of the input scales over the output scale.
    pub mult: f32,
    /// Output.
    pub dst: Buffer,
    /// Requantization.
    pub requant: Requant,
}

impl StepOp for MulStep {
    fn check(&self, c: &Checker<'_>) -> Check {
        broadcast::check(c, &self.dst, &self.src)?;
        c.requant(&self.requant)
    }

    #[inline(always)]
    unsafe fn run(&self, cx: &Context<'_>) {
        let ([a, b], domain) = (&self.src, cx.kernel.domain);
        // SAFETY: it has passed the check.
        unsafe {
            broadcast::run(cx, &self.dst, &self.src, |qa, qb| {
                let product = (domain.decode(qa) - a.zero_point) * (domain.decode(qb) - b.zero_point);
                self.requant.quantize(product as f32 * self.mult)
            });
        }
    }

    fn dst(&self) -> Option<&Buffer> {
        Some(&self.dst)
    }
}
