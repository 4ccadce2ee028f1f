//! Concatenation along height or width.

use super::gather::Sources;
use super::reference::{Inputs, Results};
use super::{Cost, Operator, Planner, Site, Step};
use crate::graph::{Clamp, Shape};

/// ONNX `Concat` along height (`side` 0) or width (1), each input requantized as [`Requantize`](super::Requantize) does it.
#[derive(Debug, Clone)]
pub struct Join {
    /// 0: height, 1: width.
    pub side: usize,
}

impl Operator for Join {
    fn name(&self) -> &'static str {
        "Concat"
    }

    fn shape(&self, inputs: &[Shape]) -> Result<Shape, String> {
        let mut out = inputs[0];
        let others = |s: &Shape| [s.hwc[1 - self.side], s.channels()];
        if inputs.iter().any(|s| s.flat || others(s) != others(&out)) {
            return Err("inputs differ in another side than the one they are joined along".into());
        }
        out.hwc[self.side] = inputs.iter().map(|s| s.hwc[self.side]).sum();
        Ok(out)
    }

    fn plan(&self, site: &Site<'_>, p: &mut Planner<'_>) -> crate::Result<()> {
        let out = site.out()?;
        let mut origin = [0; 2];
        for &t in site.inputs {
            let [h, w, c] = p.shapes[t].hwc;
            let side = |size: usize| (0..size).map(Some).collect();
            let mut step = Sources::pixels(side(h), side(w), (0..c).map(Some)).step(p.buffers[t], p.buffers[out], origin, 0);
            if p.quant(t) != p.quant(out) {
                step.table = p.table(t, out, Clamp::default(), |x| x);
            }
            origin[self.side] += [h, w][self.side];
            p.emit(site, Step::Gather(step), "copy", Cost::default());
        }
        Ok(())
    }

    fn reference(&self, inputs: &Inputs<'_>) -> Results {
        let shapes: Vec<Shape> = inputs.values.iter().map(|v| v.shape).collect();
        let shape = self.shape(&shapes).expect("inputs that fit");
        let mut out = inputs.sink(Clamp::default(), shape);
        let ([h, w, channels], scale) = (shape.hwc, out.quant.scale);
        for c in 0..channels {
            for (y, x) in (0..h).flat_map(|y| (0..w).map(move |x| (y, x))) {
                let (mut at, mut i) = ([y, x], 0);
                while at[self.side] >= shapes[i].hwc[self.side] {
                    at[self.side] -= shapes[i].hwc[self.side];
                    i += 1;
                }
                let (q, s) = (inputs.centred(i, inputs.values[i].at(c, at[0], at[1])), inputs.quants[i].scale);
                out.push(q as f32 * s / scale, q as f64 * f64::from(s) / f64::from(scale));
            }
        }
        out.done()
    }
}
