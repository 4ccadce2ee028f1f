//! Largest value of each window.
#![allow(unsafe_code)]

use super::reference::{Inputs, Results, taps};
use super::taps::Taps;
use super::{Cost, Operator, Planner, Site, Step};
use crate::graph::{Clamp, Shape, Window};
use crate::kernels::Domain;
use crate::program::{Buffer, Check, Checker, Context, StepOp};
use serde::{Deserialize, Serialize};

/// ONNX `MaxPool`: largest value of each window, padding ignored; same quantization in and out.
#[derive(Debug, Clone)]
pub struct MaxPool {
    /// Geometry.
    pub window: Window,
}

/// ONNX `GlobalMaxPool` (and `ReduceMax` over height and width): largest value of each channel; same quantization in and out.
#[derive(Debug, Clone)]
pub struct GlobalMaxPool;

impl Operator for GlobalMaxPool {
    fn name(&self) -> &'static str {
        "GlobalMaxPool"
    }

    fn shape(&self, inputs: &[Shape]) -> Result<Shape, String> {
        Ok(Shape::picture([1, 1], inputs[0].channels()))
    }

    fn plan(&self, site: &Site<'_>, p: &mut Planner<'_>) -> crate::Result<()> {
        let [h, w, _] = p.src(site, 0).shape;
        MaxPool { window: Window::whole([h, w]) }.plan(site, p)
    }

    fn reference(&self, inputs: &Inputs<'_>) -> Results {
        let shape = inputs.values[0].shape;
        let mut out = inputs.sink(Clamp::default(), Shape::picture([1, 1], shape.channels()));
        let values: Vec<i64> = inputs.all(0).collect();
        for plane in values.chunks(shape.hwc[0] * shape.hwc[1]) {
            let largest = plane.iter().max().copied().expect("a picture that is not empty");
            out.push(largest as f32, largest as f64);
        }
        out.done()
    }
}

impl Operator for MaxPool {
    fn name(&self) -> &'static str {
        "MaxPool"
    }

    fn shape(&self, inputs: &[Shape]) -> Result<Shape, String> {
        self.window.shape(&inputs[0], inputs[0].channels())
    }

    fn plan(&self, site: &Site<'_>, p: &mut Planner<'_>) -> crate::Result<()> {
        let out = site.out()?;
        if p.quant(site.inputs[0]) != p.quant(out) {
            return Err(site.shape_error("input and output must share their quantization"));
        }
        let step = MaxPoolStep { src: p.src(site, 0), dst: p.buffers[out], window: self.window };
        p.emit(site, Step::MaxPool(step), "maxpool", Cost::default());
        Ok(())
    }

    fn reference(&self, inputs: &Inputs<'_>) -> Results {
        let x = inputs.values[0];
        let shape = self.window.shape(&x.shape, x.shape.channels()).expect("a window that fits");
        let mut out = inputs.sink(Clamp::default(), shape);
        let [h, w, channels] = shape.hwc;
        for c in 0..channels {
            for (oy, ox) in (0..h).flat_map(|y| (0..w).map(move |x| (y, x))) {
                let mut largest = None;
                taps(&self.window, x.shape.hw(), oy, ox, |_, y, x_| largest = largest.max(Some(inputs.centred(0, x.at(c, y, x_)))));
                // A window of padding only is as small as can be.
                let lowest = i64::from(out.quant.dtype.range().0 - out.quant.zero_point);
                let largest = largest.unwrap_or(lowest);
                out.push(largest as f32, largest as f64);
            }
        }
        out.done()
    }
}

/// Largest value of each window.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct MaxPoolStep {
    /// Input.
    pub src: Buffer,
    /// Output.
    pub dst: Buffer,
    /// Geometry.
    pub window: Window,
}

impl StepOp for MaxPoolStep {
    fn check(&self, c: &Checker<'_>) -> Check {
        c.buffers(&self.dst, &[&self.src])?;
        c.window(&self.src, &self.dst, &self.window)
    }

    #[inline(always)]
    unsafe fn run(&self, cx: &Context<'_>) {
        for y in cx.share(self.dst.shape[0]) {
            let rows = Taps::new(&self.src, &self.window, 0, y);
            // SAFETY: rows are shared out, and taps lie in the input.
            unsafe {
                let row = |r: usize| cx.at(&self.src, r, 0).cast_const();
                max_pool_row(cx.kernel.domain, &rows, row, &self.src, &self.window, cx.at(&self.dst, y, 0), &self.dst);
            }
        }
    }

    fn dst(&self) -> Option<&Buffer> {
        Some(&self.dst)
    }
}

/// One row of a max-pool, its first byte at `out`; `row` tells where a row of the input starts.
///
/// # Safety
/// Rows of `src` that lie in `rows` are readable, and nobody writes them meanwhile; a row of `dst` is writable.
#[inline(always)]
pub(super) unsafe fn max_pool_row(
    domain: Domain,
    rows: &Taps,
    row: impl Fn(usize) -> *const u8,
    src: &Buffer,
    window: &Window,
    out: *mut u8,
    dst: &Buffer,
) {
    let channels = dst.channels();
    let least = domain.range().0 as u8;
    for x in 0..dst.shape[1] {
        // SAFETY: the pixel lies in the row, and is this thread's.
        unsafe { std::slice::from_raw_parts_mut(out.add(x * dst.pixel), channels) }.fill(least);
    }
    for r in 0..rows.count {
        let row = row(rows.first + r * rows.step);
        for x in 0..dst.shape[1] {
            // SAFETY: as above.
            let out = unsafe { std::slice::from_raw_parts_mut(out.add(x * dst.pixel), channels) };
            let columns = Taps::new(src, window, 1, x);
            // SAFETY: taps lie in the row.
            let tap = |c: usize| unsafe { row.add((columns.first + c * columns.step) * src.pixel) };
            // Blocks that stay in registers over the row's taps.
            let (blocks, rest) = out.as_chunks_mut::<64>();
            for (index, block) in blocks.iter_mut().enumerate() {
                let mut largest = *block;
                for c in 0..columns.count {
                    // SAFETY: a tap has as many channels as the output.
                    max(domain, &mut largest, unsafe { &*tap(c).add(64 * index).cast::<[u8; 64]>() });
                }
                *block = largest;
            }
            if !rest.is_empty() {
                for c in 0..columns.count {
                    // SAFETY: as above.
                    max(domain, rest, unsafe { std::slice::from_raw_parts(tap(c).add(64 * blocks.len()), rest.len()) });
                }
            }
        }
    }
}

/// `out = max(out, tap)`, byte by byte.
#[inline(always)]
fn max(domain: Domain, out: &mut [u8], tap: &[u8]) {
    match domain {
        Domain::U8 => out.iter_mut().zip(tap).for_each(|(o, &t)| *o = (*o).max(t)),
        Domain::S8 => out.iter_mut().zip(tap).for_each(|(o, &t)| *o = (*o as i8).max(t as i8) as u8),
    }
}
