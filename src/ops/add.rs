//! Sum of two tensors.
#![allow(unsafe_code)]

use super::reference::{Inputs, Results};
use super::{Cost, Operator, Planner, Site, Step};
use crate::graph::{Clamp, Shape};
use crate::kernels::Requant;
use crate::program::{Buffer, Check, Checker, Context, StepOp, ensure};
use serde::{Deserialize, Serialize};

/// ONNX `Add` of two tensors of one shape: `f32(a − zp_a)·(s_a / s_y) + f32(b − zp_b)·(s_b / s_y)`.
#[derive(Debug, Clone)]
pub struct Add {
    /// Fused activation.
    pub clamp: Clamp,
}

impl Operator for Add {
    fn name(&self) -> &'static str {
        "Add"
    }

    fn shape(&self, inputs: &[Shape]) -> Result<Shape, String> {
        if inputs[0].hwc != inputs[1].hwc {
            return Err(format!("{:?} and {:?} differ; broadcasting is not supported", inputs[0].onnx(), inputs[1].onnx()));
        }
        Ok(inputs[0])
    }

    fn plan(&self, site: &Site<'_>, p: &mut Planner<'_>) -> crate::Result<()> {
        let out = site.out()?;
        let y = p.quant(out).scale;
        let mult = [p.quant(site.inputs[0]).scale / y, p.quant(site.inputs[1]).scale / y];
        site.check_multipliers(&mult)?;
        let step = AddStep { src: [p.src(site, 0), p.src(site, 1)], mult, dst: p.buffers[out], requant: p.requant(out, self.clamp) };
        p.emit(site, Step::Add(step), "add", Cost::default());
        Ok(())
    }

    fn reference(&self, inputs: &Inputs<'_>) -> Results {
        let mut out = inputs.sink(self.clamp, inputs.values[0].shape);
        let ((ma, ea), (mb, eb)) = (inputs.ratio(0, out.quant.scale), inputs.ratio(1, out.quant.scale));
        for (a, b) in inputs.all(0).zip(inputs.all(1)) {
            out.push(a as f32 * ma + b as f32 * mb, a as f64 * ea + b as f64 * eb);
        }
        out.done()
    }
}

/// `f32(a − zp_a)·m_a + f32(b − zp_b)·m_b`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct AddStep {
    /// Inputs.
    pub src: [Buffer; 2],
    /// Input scale over output scale.
    pub mult: [f32; 2],
    /// Output.
    pub dst: Buffer,
    /// Requantization.
    pub requant: Requant,
}

impl StepOp for AddStep {
    fn check(&self, c: &Checker<'_>) -> Check {
        let [a, b] = &self.src;
        c.buffers(&self.dst, &[a, b])?;
        c.requant(&self.requant)?;
        ensure(a.shape == self.dst.shape && b.shape == self.dst.shape, "its inputs differ in shape")
    }

    #[inline(always)]
    unsafe fn run(&self, cx: &Context<'_>) {
        let ([a, b], dst, domain) = (&self.src, &self.dst, cx.kernel.domain);
        let spans = dst.spans().and(a.spans()).and(b.spans());
        for y in cx.share(dst.shape[0]) {
            for x in (0..spans.count).map(|s| s * spans.pixels) {
                // SAFETY: rows are shared out, and all three have this shape.
                let (pa, pb, out) =
                    unsafe { (cx.read(a, y, x, spans.bytes), cx.read(b, y, x, spans.bytes), cx.write(dst, y, x, spans.bytes)) };
                for ((o, &qa), &qb) in out.iter_mut().zip(pa).zip(pb) {
                    let va = (domain.decode(qa) - a.zero_point) as f32 * self.mult[0];
                    let vb = (domain.decode(qb) - b.zero_point) as f32 * self.mult[1];
                    *o = self.requant.quantize(va + vb);
                }
            }
        }
    }

    fn dst(&self) -> Option<&Buffer> {
        Some(&self.dst)
    }
}
