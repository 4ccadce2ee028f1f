//! Channels become pixels.

use super::gather::{Sources, reference};
use super::reference::{Inputs, Results};
use super::{Operator, Planner, Site};
use crate::graph::Shape;

/// How the channels of a pixel become a block of pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Groups {
    /// So many groups of channels, each of which holds its block's first pixel, then the second, …; 1: ONNX's `DCR`.
    Of(usize),
    /// One group for each output channel: ONNX's `CRD`.
    EachChannel,
}

/// ONNX `DepthToSpace`, perhaps with pixels cut off at the sides: same quantization in and out. A transposed convolution ends with it.
#[derive(Debug, Clone)]
pub struct DepthToSpace {
    /// Height and width of the block that a pixel becomes.
    pub block: [usize; 2],
    /// Order of the input's channels.
    pub groups: Groups,
    /// Pixels that are cut off: top, left, bottom, right.
    pub crop: [usize; 4],
}

impl DepthToSpace {
    /// The input's channel for an output channel at a pixel (y, x) of the block; there are `channels` output channels.
    fn channel(&self, channels: usize, c: usize, y: usize, x: usize) -> usize {
        let groups = if let Groups::Of(n) = self.groups { n } else { channels };
        let size = channels / groups;
        (c / size * self.block[0] * self.block[1] + y * self.block[1] + x) * size + c % size
    }
}

impl Operator for DepthToSpace {
    fn name(&self) -> &'static str {
        "DepthToSpace"
    }

    fn shape(&self, inputs: &[Shape]) -> Result<Shape, String> {
        let x = &inputs[0];
        let [h, w, c] = x.hwc;
        let pixels = self.block[0].checked_mul(self.block[1]).filter(|n| *n > 0 && c.is_multiple_of(*n));
        let channels = pixels.map(|n| c / n).filter(|n| !matches!(self.groups, Groups::Of(g) if g == 0 || !n.is_multiple_of(g)));
        let Some(channels) = channels.filter(|_| !x.flat) else {
            return Err(format!("{:?} does not make blocks of {:?} pixels", x.onnx(), self.block));
        };
        let side = |size: usize, d: usize| {
            let full = size.checked_mul(self.block[d])?.checked_sub(self.crop[d])?.checked_sub(self.crop[d + 2])?;
            Some(full).filter(|n| *n > 0)
        };
        match (side(h, 0), side(w, 1)) {
            (Some(h), Some(w)) => Ok(Shape::picture([h, w], channels)),
            _ => Err(format!("nothing is left of {:?}", x.onnx())),
        }
    }

    fn plan(&self, site: &Site<'_>, p: &mut Planner<'_>) -> crate::Result<()> {
        let [h, w, channels] = p.shapes[site.out()?].hwc;
        let side = |d: usize, size: usize| {
            (0..size).map(|i| (Some((i + self.crop[d]) / self.block[d]), (i + self.crop[d]) % self.block[d])).collect()
        };
        let phases = |side: &[(Option<usize>, usize)]| side.iter().map(|s| s.1).max().map_or(0, |m| m + 1);
        let (rows, columns): (Vec<_>, Vec<_>) = (side(0, h), side(1, w));
        let pairs = (0..phases(&rows)).flat_map(|y| (0..phases(&columns)).map(move |x| (y, x)));
        let cells = pairs.map(|(y, x)| (0..channels).map(|c| Some([0, 0, self.channel(channels, c, y, x)])).collect()).collect();
        Sources { rows, columns, cells }.plan(site, p, 0)
    }

    fn reference(&self, inputs: &Inputs<'_>) -> Results {
        let shape = self.shape(&[inputs.values[0].shape]).expect("blocks that fit");
        let ([by, bx], [top, left, ..]) = (self.block, self.crop);
        reference(inputs, shape, 0, |[c, y, x]| {
            let (y, x) = (y + top, x + left);
            Some([self.channel(shape.channels(), c, y % by, x % bx), y / by, x / bx])
        })
    }
}
