//! Leaky rectifier with a slope for each channel.
#![allow(unsafe_code)]

use super::reference::{Inputs, Results};
use super::{Cost, Operator, Planner, Site, Step};
use crate::graph::{Clamp, Shape};
use crate::kernels::Requant;
use crate::program::{AnyBlob, Blob, Buffer, Check, Checker, Context, StepOp, ensure};
use serde::{Deserialize, Serialize};

/// ONNX `PRelu` with a slope for each channel: `f32(x − zp) · (s_x / s_y)`, below 0 `f32(x − zp) · (s_x / s_y · slope)`.
#[derive(Debug, Clone)]
pub struct PRelu {
    /// One for each channel.
    pub slope: Vec<f32>,
    /// Fused activation.
    pub clamp: Clamp,
}

impl Operator for PRelu {
    fn name(&self) -> &'static str {
        "PRelu"
    }

    fn shape(&self, inputs: &[Shape]) -> Result<Shape, String> {
        let x = inputs[0];
        match !x.flat && x.channels() == self.slope.len() {
            true => Ok(x),
            false => Err(format!("{} slopes do not fit an input of {:?}", self.slope.len(), x.onnx())),
        }
    }

    fn plan(&self, site: &Site<'_>, p: &mut Planner<'_>) -> crate::Result<()> {
        let out = site.out()?;
        let mult = p.quant(site.inputs[0]).scale / p.quant(out).scale;
        let below: Vec<f32> = self.slope.iter().map(|s| mult * s).collect();
        site.check_multipliers(&[mult])?;
        site.check_multipliers(&below.iter().map(|m| m.abs()).collect::<Vec<_>>())?;
        let step = PReluStep { src: p.src(site, 0), dst: p.buffers[out], mult, below: below.into(), requant: p.requant(out, self.clamp) };
        p.emit(site, Step::PRelu(step), "prelu", Cost::default());
        Ok(())
    }

    fn reference(&self, inputs: &Inputs<'_>) -> Results {
        let shape = inputs.values[0].shape;
        let mut out = inputs.sink(self.clamp, shape);
        let (mult, exact) = inputs.ratio(0, out.quant.scale);
        let plane = shape.hwc[0] * shape.hwc[1];
        for (i, q) in inputs.all(0).enumerate() {
            let slope = if q < 0 { self.slope[i / plane] } else { 1.0 };
            out.push(q as f32 * (mult * slope), q as f64 * exact * f64::from(slope));
        }
        out.done()
    }
}

/// `f32(x − zp)` times one of two multipliers.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PReluStep {
    /// Input.
    pub src: Buffer,
    /// Output.
    pub dst: Buffer,
    /// Input scale over output scale.
    pub mult: f32,
    /// The same times the slope, for each channel.
    #[serde(skip)]
    pub below: Blob<f32>,
    /// Requantization.
    pub requant: Requant,
}

impl StepOp for PReluStep {
    fn check(&self, c: &Checker<'_>) -> Check {
        c.buffers(&self.dst, &[&self.src])?;
        c.requant(&self.requant)?;
        ensure(self.below.len() == self.dst.channels(), "it has not one slope for each channel")?;
        ensure(self.src.shape == self.dst.shape, "input and output differ in shape")
    }

    #[inline(always)]
    unsafe fn run(&self, cx: &Context<'_>) {
        let (src, dst, domain) = (&self.src, &self.dst, cx.kernel.domain);
        let channels = dst.channels();
        for y in cx.share(dst.shape[0]) {
            for x in 0..dst.shape[1] {
                // SAFETY: rows are shared out, and both have this shape.
                let (from, to) = unsafe { (cx.read(src, y, x, channels), cx.write(dst, y, x, channels)) };
                for ((o, &q), &below) in to.iter_mut().zip(from).zip(self.below.iter()) {
                    let v = domain.decode(q) - src.zero_point;
                    *o = self.requant.quantize(v as f32 * if v < 0 { below } else { self.mult });
                }
            }
        }
    }

    fn dst(&self) -> Option<&Buffer> {
        Some(&self.dst)
    }

    fn blobs(&mut self) -> Vec<&mut dyn AnyBlob> {
        vec![&mut self.below]
    }
}
