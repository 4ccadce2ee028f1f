//! A quantized tensor leaves the region as floats.
#![allow(unsafe_code)]

use super::reference::{Inputs, Results};
use super::{Cost, Operator, Planner, Site, Step};
use crate::graph::Shape;
use crate::program::{Buffer, Check, Checker, Context, StepOp};
use serde::{Deserialize, Serialize};

/// ONNX `DequantizeLinear`: `(q − zero_point) · scale`.
#[derive(Debug, Clone)]
pub struct Dequantize {
    /// ONNX name of the float value.
    pub target: String,
}

impl Operator for Dequantize {
    fn name(&self) -> &'static str {
        "Dequantize"
    }

    fn shape(&self, inputs: &[Shape]) -> Result<Shape, String> {
        Ok(inputs[0])
    }

    fn target(&self) -> Option<&str> {
        Some(&self.target)
    }

    fn plan(&self, site: &Site<'_>, p: &mut Planner<'_>) -> crate::Result<()> {
        let input = site.inputs[0];
        let (src, scale, shape) = (p.src(site, 0), p.quant(input).scale, p.shapes[input].onnx());
        let target = p.target(&self.target, shape);
        p.emit(site, Step::Dequantize(DequantizeStep { src, target, scale }), "dequantize", Cost::default());
        Ok(())
    }

    fn reference(&self, inputs: &Inputs<'_>) -> Results {
        Results::Float(inputs.all(0).map(|q| q as f32 * inputs.quants[0].scale).collect())
    }
}

/// Bytes → f32 NCHW target.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct DequantizeStep {
    /// Input.
    pub src: Buffer,
    /// Index of the target.
    pub target: usize,
    /// Scale.
    pub scale: f32,
}

impl StepOp for DequantizeStep {
    fn check(&self, c: &Checker<'_>) -> Check {
        c.buffer(&self.src)?;
        Checker::port(c.targets, self.target, self.src.values())
    }

    #[inline(always)]
    unsafe fn run(&self, cx: &Context<'_>) {
        let (src, domain) = (&self.src, cx.kernel.domain);
        let [h, w, c] = src.shape;
        // SAFETY: rows are shared out; the target has a value for each of the input's.
        unsafe {
            let out = *cx.memory.outputs.add(self.target);
            for y in cx.share(h) {
                for x in 0..w {
                    let pixel = cx.read(src, y, x, c);
                    for (ch, &q) in pixel.iter().enumerate() {
                        *out.add((ch * h + y) * w + x) = (domain.decode(q) - src.zero_point) as f32 * self.scale;
                    }
                }
            }
        }
    }

    fn dst(&self) -> Option<&Buffer> {
        None
    }
}
