//! A border around a tensor: a constant, or values of its own.

use super::gather::{Sources, reference};
use super::reference::{Inputs, Results};
use super::{Operator, Planner, Site, domain_shift};
use crate::graph::{QuantParams, Shape};

/// What a border holds (ONNX `Pad`, `mode`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Border {
    /// This real value, rounded to the tensor's quantization.
    Constant(f32),
    /// The values inside, mirrored at the outermost one, which stands once.
    Reflect,
    /// The outermost value.
    Edge,
    /// The values from the other end.
    Wrap,
}

impl Border {
    /// The value of a side of `size` that stands at place `i`, counted from the first one.
    fn source(self, i: i64, size: usize) -> Option<usize> {
        let last = size as i64 - 1;
        let inside = match self {
            Border::Constant(_) => i,
            Border::Reflect => last - (last - i.abs()).abs(),
            Border::Edge => i.clamp(0, last),
            Border::Wrap => i.rem_euclid(last + 1),
        };
        usize::try_from(inside).ok().filter(|i| *i < size)
    }
}

/// ONNX `Pad`: same quantization in and out. Negative amounts of a constant border cut off.
#[derive(Debug, Clone)]
pub struct Pad {
    /// Before, and after: channels, height, width.
    pub amounts: [[i64; 2]; 3],
    /// What is put there.
    pub border: Border,
}

impl Pad {
    /// The constant, quantized as the tensor.
    fn fill(&self, quant: QuantParams) -> i32 {
        let Border::Constant(value) = self.border else { return quant.zero_point };
        let (min, max) = quant.dtype.range();
        ((value / quant.scale).round_ties_even() as i32).saturating_add(quant.zero_point).clamp(min, max)
    }
}

impl Operator for Pad {
    fn name(&self) -> &'static str {
        "Pad"
    }

    fn shape(&self, inputs: &[Shape]) -> Result<Shape, String> {
        let x = &inputs[0];
        let [h, w, c] = x.hwc;
        if x.flat && [h, w] != [1, 1] {
            return Err("a picture [1, C, H, W] is needed, not a vector".into());
        }
        let side = |size: usize, axis: usize| {
            // One mirror, or one more of the same, at each end.
            let limit = match self.border {
                Border::Constant(_) => None,
                Border::Edge => Some(i64::from(u16::MAX)),
                Border::Reflect => Some(size as i64 - 1),
                Border::Wrap => Some(size as i64),
            };
            if limit.is_some_and(|limit| self.amounts[axis].iter().any(|a| !(0..=limit).contains(a))) {
                return Err(format!("{:?} of {size} values do not reach {:?}", self.border, self.amounts[axis]));
            }
            let padded = (size as i64).checked_add(self.amounts[axis][0]).and_then(|n| n.checked_add(self.amounts[axis][1]));
            padded
                .and_then(|n| usize::try_from(n).ok())
                .filter(|n| *n > 0)
                .ok_or_else(|| format!("its pads leave nothing of {size} values"))
        };
        Ok(Shape { hwc: [side(h, 1)?, side(w, 2)?, side(c, 0)?], flat: x.flat })
    }

    fn plan(&self, site: &Site<'_>, p: &mut Planner<'_>) -> crate::Result<()> {
        let (x, out) = (site.inputs[0], site.out()?);
        let ([h, w, c], [out_h, out_w, out_c]) = (p.shapes[x].hwc, p.shapes[out].hwc);
        let axis = |axis: usize, size: usize, out: usize| {
            let before = self.amounts[axis][0];
            (0..out as i64).map(move |i| self.border.source(i - before, size))
        };
        let quant = p.quant(x);
        let fill = (self.fill(quant) + domain_shift(quant.dtype, p.kernel.domain)) as u8;
        Sources::pixels(axis(1, h, out_h).collect(), axis(2, w, out_w).collect(), axis(0, c, out_c)).plan(site, p, fill)
    }

    fn reference(&self, inputs: &Inputs<'_>) -> Results {
        let x = inputs.values[0].shape;
        let ([h, w, c], quant) = (x.hwc, inputs.quants[0]);
        let shape = self.shape(&[x]).expect("pads that fit");
        let fill = i64::from(self.fill(quant)) - i64::from(quant.zero_point);
        reference(inputs, shape, fill, |to| {
            let mut from = [0; 3];
            for axis in 0..3 {
                from[axis] = self.border.source(to[axis] as i64 - self.amounts[axis][0], [c, h, w][axis])?;
            }
            Some(from)
        })
    }
}
