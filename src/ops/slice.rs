//! Some channels, rows and columns of a tensor.

use super::gather::{Sources, reference, same_quantization};
use super::reference::{Inputs, Results};
use super::{Operator, Planner, Site};
use crate::graph::Shape;

/// What is taken along one axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// As ONNX `Slice` has it: from `start` to before `end`, both counted from the end if negative, and cut to the axis.
    Range {
        /// The first.
        start: i64,
        /// After the last.
        end: i64,
        /// From one to the next; not 0.
        step: i64,
    },
    /// As ONNX `Split` has it: one of `count` parts of equal size, the last of which may be smaller.
    Part {
        /// Which one.
        index: usize,
        /// How many.
        count: usize,
    },
}

impl Extent {
    /// All of it.
    pub const ALL: Extent = Extent::Range { start: 0, end: i64::MAX, step: 1 };

    /// The first index, and how many there are, of an axis of `size`.
    fn resolve(self, size: usize) -> Result<(usize, usize), String> {
        let n = size as i64;
        match self {
            Extent::Part { index, count } => {
                let part = size.div_ceil(count.max(1));
                let first = index * part;
                match size.checked_sub(first) {
                    Some(left) if left > 0 => Ok((first, left.min(part))),
                    _ => Err(format!("{size} values do not make {count} parts")),
                }
            }
            Extent::Range { start, end, step } => {
                let from_end = |v: i64| if v < 0 { v.saturating_add(n) } else { v };
                // Backwards, the end lies before the first value at most.
                let ((least, most), last) = if step > 0 { ((0, n), n) } else { ((-1, n - 1), n - 1) };
                let (start, end) = (from_end(start).clamp(0, last), from_end(end).clamp(least, most));
                let distance = if step > 0 { end - start } else { start - end };
                match step {
                    0 => Err("its step is 0".into()),
                    _ if distance <= 0 => Err(format!("nothing is left of {size} values")),
                    _ => Ok((start as usize, distance.unsigned_abs().div_ceil(step.unsigned_abs()) as usize)),
                }
            }
        }
    }

    /// From one to the next.
    fn step(self) -> i64 {
        if let Extent::Range { step, .. } = self { step } else { 1 }
    }
}

/// ONNX `Slice`, and one output of `Split`: same quantization in and out. Channels that follow each other, of all rows and columns, stay where
/// they are: the output is a view of the input.
#[derive(Debug, Clone)]
pub struct Slice {
    /// Along channels, height and width.
    pub extents: [Extent; 3],
}

impl Slice {
    /// First index and number, along channels, height and width.
    fn resolve(&self, x: &Shape) -> Result<[(usize, usize); 3], String> {
        let [h, w, c] = x.hwc;
        let [channels, rows, columns] = self.extents;
        Ok([channels.resolve(c)?, rows.resolve(h)?, columns.resolve(w)?])
    }

    /// The index that is taken as number `i`.
    fn at(&self, axis: usize, first: usize, i: usize) -> usize {
        (first as i64 + i as i64 * self.extents[axis].step()) as usize
    }
}

impl Operator for Slice {
    fn name(&self) -> &'static str {
        "Slice"
    }

    fn shape(&self, inputs: &[Shape]) -> Result<Shape, String> {
        let x = &inputs[0];
        if x.flat && x.hw() != [1, 1] {
            return Err("a picture [1, C, H, W] is needed, not a vector".into());
        }
        let [(_, c), (_, h), (_, w)] = self.resolve(x)?;
        Ok(Shape { hwc: [h, w, c], flat: x.flat })
    }

    fn view(&self, x: &Shape) -> Option<usize> {
        let [(first, count), (_, h), (_, w)] = self.resolve(x).ok()?;
        // A single channel is its own neighbour, whatever the step.
        let forward = (0..3).all(|axis| self.extents[axis].step() == 1) || (count == 1 && self.extents[1..].iter().all(|e| e.step() == 1));
        (forward && [h, w] == x.hw()).then_some(first)
    }

    fn plan(&self, site: &Site<'_>, p: &mut Planner<'_>) -> crate::Result<()> {
        let (x, out) = (site.inputs[0], site.out()?);
        same_quantization(site, p)?;
        if let Some(first) = self.view(&p.shapes[x])
            && p.buffers[x].view(first, p.shapes[out].channels()) == p.buffers[out]
        {
            return Ok(());
        }
        let resolved = self.resolve(&p.shapes[x]).map_err(|why| site.shape_error(why))?;
        let axis = |axis: usize| (0..resolved[axis].1).map(move |i| Some(self.at(axis, resolved[axis].0, i)));
        Sources::pixels(axis(1).collect(), axis(2).collect(), axis(0)).plan(site, p, 0)
    }

    fn reference(&self, inputs: &Inputs<'_>) -> Results {
        let x = inputs.values[0].shape;
        let [(c, _), (y, _), (x_, _)] = self.resolve(&x).expect("a slice that fits");
        let shape = self.shape(&[x]).expect("a slice that fits");
        reference(inputs, shape, 0, |to| Some([self.at(0, c, to[0]), self.at(1, y, to[1]), self.at(2, x_, to[2])]))
    }
}
