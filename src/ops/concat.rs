//! Concatenation along channels.

use super::lookup::LookupStep;
use super::reference::{Inputs, Results};
use super::{Cost, Operator, Planner, Site, Step};
use crate::graph::{Clamp, Shape};

/// ONNX `Concat` along channels, each input requantized as [`Requantize`](super::Requantize) does it.
///
/// An input that lies in its place already, because the planner made it a view of the output, costs nothing.
#[derive(Debug, Clone, Default)]
pub struct Concat;

impl Operator for Concat {
    fn name(&self) -> &'static str {
        "Concat"
    }

    fn shape(&self, inputs: &[Shape]) -> Result<Shape, String> {
        let first = inputs[0];
        if inputs.iter().any(|s| s.hw() != first.hw()) {
            return Err("inputs differ in height or width".into());
        }
        let channels = inputs.iter().map(Shape::channels).sum();
        Ok(Shape { hwc: [first.hwc[0], first.hwc[1], channels], flat: first.flat })
    }

    fn plan(&self, site: &Site<'_>, p: &mut Planner<'_>) -> crate::Result<()> {
        let out = site.out()?;
        let mut channel = 0;
        for &t in site.inputs {
            let src = p.buffers[t];
            let dst = p.buffers[out].view(channel, src.channels());
            channel += src.channels();
            if src != dst {
                let step = LookupStep { src, dst, table: p.table(t, out, Clamp::default(), |x| x) };
                p.emit(site, Step::Lookup(step), "lookup", Cost::default());
            }
        }
        Ok(())
    }

    fn reference(&self, inputs: &Inputs<'_>) -> Results {
        let shapes: Vec<Shape> = inputs.values.iter().map(|v| v.shape).collect();
        let mut out = inputs.sink(Clamp::default(), self.shape(&shapes).expect("inputs that fit"));
        let y = out.quant.scale;
        for i in 0..inputs.values.len() {
            let x = inputs.quants[i].scale;
            for q in inputs.all(i) {
                out.push(q as f32 * x / y, q as f64 * f64::from(x) / f64::from(y));
            }
        }
        out.done()
    }
}
