//! Sum and difference of two tensors.
#![allow(unsafe_code)]

use super::reference::{Inputs, Results};
use super::{Cost, Operator, Planner, Site, Step, broadcast};
use crate::graph::{Clamp, Shape};
use crate::kernels::Requant;
use crate::program::{Buffer, Check, Checker, Context, StepOp};
use serde::{Deserialize, Serialize};

/// ONNX `Add` of two tensors, of which one may have fewer values: `f32(a − zp_a)·(s_a / s_y) + f32(b − zp_b)·(s_b / s_y)`.
#[derive(Debug, Clone)]
pub struct Add {
    /// Fused activation.
    pub clamp: Clamp,
}

/// ONNX `Sub`, as [`Add`]: `f32(a − zp_a)·(s_a / s_y) − f32(b − zp_b)·(s_b / s_y)`.
#[derive(Debug, Clone)]
pub struct Sub {
    /// Fused activation.
    pub clamp: Clamp,
}

impl Operator for Add {
    fn name(&self) -> &'static str {
        "Add"
    }

    fn shape(&self, inputs: &[Shape]) -> Result<Shape, String> {
        broadcast::shape(inputs)
    }

    fn plan(&self, site: &Site<'_>, p: &mut Planner<'_>) -> crate::Result<()> {
        plan(site, p, self.clamp, 1.0)
    }

    fn reference(&self, inputs: &Inputs<'_>) -> Results {
        reference(inputs, self.clamp, 1.0)
    }
}

impl Operator for Sub {
    fn name(&self) -> &'static str {
        "Sub"
    }

    fn shape(&self, inputs: &[Shape]) -> Result<Shape, String> {
        broadcast::shape(inputs)
    }

    fn plan(&self, site: &Site<'_>, p: &mut Planner<'_>) -> crate::Result<()> {
        plan(site, p, self.clamp, -1.0)
    }

    fn reference(&self, inputs: &Inputs<'_>) -> Results {
        reference(inputs, self.clamp, -1.0)
    }
}

/// `sign`, of the second term, is 1 or −1.
fn plan(site: &Site<'_>, p: &mut Planner<'_>, clamp: Clamp, sign: f32) -> crate::Result<()> {
    let out = site.out()?;
    let y = p.quant(out).scale;
    let mult = [p.quant(site.inputs[0]).scale / y, p.quant(site.inputs[1]).scale / y];
    site.check_multipliers(&mult)?;
    let mult = [mult[0], sign * mult[1]];
    let step = AddStep { src: [p.src(site, 0), p.src(site, 1)], mult, dst: p.buffers[out], requant: p.requant(out, clamp) };
    p.emit(site, Step::Add(step), "add", Cost::default());
    Ok(())
}

fn reference(inputs: &Inputs<'_>, clamp: Clamp, sign: f32) -> Results {
    let shape = broadcast::shape(&[inputs.values[0].shape, inputs.values[1].shape]).expect("inputs that fit");
    let mut out = inputs.sink(clamp, shape);
    let ((ma, ea), (mb, eb)) = (inputs.ratio(0, out.quant.scale), inputs.ratio(1, out.quant.scale));
    for (a, b) in broadcast::pairs(inputs, shape) {
        out.push(a as f32 * ma + sign * (b as f32 * mb), a as f64 * ea + f64::from(sign) * (b as f64 * eb));
    }
    out.done()
}

/// `f32(a − zp_a)·m_a + f32(b − zp_b)·m_b`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct AddStep {
    /// Inputs.
    pub src: [Buffer; 2],
    /// Input scale over output scale, negative where the input is subtracted.
    pub mult: [f32; 2],
    /// Output.
    pub dst: Buffer,
    /// Requantization.
    pub requant: Requant,
}

impl StepOp for AddStep {
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
                let va = (domain.decode(qa) - a.zero_point) as f32 * self.mult[0];
                let vb = (domain.decode(qb) - b.zero_point) as f32 * self.mult[1];
                self.requant.quantize(va + vb)
            });
        }
    }

    fn dst(&self) -> Option<&Buffer> {
        Some(&self.dst)
    }
}
