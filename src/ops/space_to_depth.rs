//! Pixels become channels.

use super::gather::{Sources, reference};
use super::reference::{Inputs, Results};
use super::{Operator, Planner, Site};
use crate::graph::Shape;

/// ONNX `SpaceToDepth`: the channels of a block's first pixel, then of the second, …; same quantization in and out.
#[derive(Debug, Clone)]
pub struct SpaceToDepth {
    /// Height and width of the block that becomes a pixel.
    pub block: usize,
}

impl Operator for SpaceToDepth {
    fn name(&self) -> &'static str {
        "SpaceToDepth"
    }

    fn shape(&self, inputs: &[Shape]) -> Result<Shape, String> {
        let (x, b) = (&inputs[0], self.block);
        let [h, w, c] = x.hwc;
        if x.flat || b == 0 || !h.is_multiple_of(b) || !w.is_multiple_of(b) {
            return Err(format!("{:?} has no whole blocks of {b}×{b} pixels", x.onnx()));
        }
        Ok(Shape::picture([h / b, w / b], c * b * b))
    }

    fn plan(&self, site: &Site<'_>, p: &mut Planner<'_>) -> crate::Result<()> {
        let (b, channels) = (self.block, p.shapes[site.inputs[0]].channels());
        let [h, w, _] = p.shapes[site.out()?].hwc;
        let side = |size: usize| (0..size).map(|i| (Some(i * b), 0)).collect();
        let cell = (0..b).flat_map(|y| (0..b).flat_map(move |x| (0..channels).map(move |c| Some([y, x, c])))).collect();
        Sources { rows: side(h), columns: side(w), cells: vec![cell] }.plan(site, p, 0)
    }

    fn reference(&self, inputs: &Inputs<'_>) -> Results {
        let x = inputs.values[0].shape;
        let (shape, b, channels) = (self.shape(&[x]).expect("blocks that fit"), self.block, x.channels());
        reference(inputs, shape, 0, |[c, y, x]| Some([c % channels, y * b + c / channels / b, x * b + c / channels % b]))
    }
}
