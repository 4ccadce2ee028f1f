//! Mean of each window.
#![allow(unsafe_code)]

use super::reference::{Inputs, Results, taps};
use super::taps::{Taps, each_tap};
use super::{Cost, Operator, Planner, Site, Step};
use crate::graph::{Clamp, Shape, Window};
use crate::kernels::Requant;
use crate::program::{Buffer, Check, Checker, Context, StepOp};
use serde::{Deserialize, Serialize};

/// ONNX `AveragePool` and `GlobalAveragePool`: `f32(Σ(x − zp)) · (s_x / (s_y · count))`.
#[derive(Debug, Clone)]
pub struct AveragePool {
    /// Geometry; `None` takes the whole picture.
    pub window: Option<Window>,
    /// Padding counts as zeros. Where the size is rounded up, what lies beyond the padding does not (ONNX, `ceil_mode`).
    pub count_include_pad: bool,
    /// Fused activation.
    pub clamp: Clamp,
}

/// ONNX `ReduceSum` over height and width: `f32(Σ(x − zp)) · (s_x / s_y)`.
#[derive(Debug, Clone)]
pub struct ReduceSum {
    /// Fused activation.
    pub clamp: Clamp,
}

impl AveragePool {
    fn window(&self, hw: [usize; 2]) -> Window {
        self.window.unwrap_or(Window::whole(hw))
    }
}

impl Operator for AveragePool {
    fn name(&self) -> &'static str {
        if self.window.is_some() { "AveragePool" } else { "GlobalAveragePool" }
    }

    fn shape(&self, inputs: &[Shape]) -> Result<Shape, String> {
        let x = &inputs[0];
        match &self.window {
            Some(window) => window.shape(x, x.channels()),
            None => Ok(Shape::picture([1, 1], x.channels())),
        }
    }

    fn plan(&self, site: &Site<'_>, p: &mut Planner<'_>) -> crate::Result<()> {
        let (out, src) = (site.out()?, p.src(site, 0));
        let step = AveragePoolStep {
            src,
            dst: p.buffers[out],
            window: self.window([src.shape[0], src.shape[1]]),
            count_include_pad: self.count_include_pad,
            sum: false,
            scales: [p.quant(site.inputs[0]).scale, p.quant(out).scale],
            requant: p.requant(out, self.clamp),
        };
        p.emit(site, Step::AveragePool(step), "averagepool", Cost::default());
        Ok(())
    }

    fn reference(&self, inputs: &Inputs<'_>) -> Results {
        let (x, scale) = (inputs.values[0], inputs.quants[0].scale);
        let hw = x.shape.hw();
        let window = self.window(hw);
        let [h, w] = window.output(hw).expect("a window that fits");
        let mut out = inputs.sink(self.clamp, Shape::picture([h, w], x.shape.channels()));
        let y = out.quant.scale;
        for c in 0..x.shape.channels() {
            for (oy, ox) in (0..h).flat_map(|y| (0..w).map(move |x| (y, x))) {
                let (mut sum, mut inside) = (0, 0);
                taps(&window, hw, oy, ox, |_, y, x_| {
                    sum += inputs.centred(0, x.at(c, y, x_));
                    inside += 1;
                });
                let padded = window.positions(0, oy, hw[0]) * window.positions(1, ox, hw[1]);
                let count = if self.count_include_pad { padded } else { inside.max(1) };
                let exact = sum as f64 * f64::from(scale) / (f64::from(y) * count as f64);
                out.push(sum as f32 * (scale / (y * count as f32)), exact);
            }
        }
        out.done()
    }
}

impl Operator for ReduceSum {
    fn name(&self) -> &'static str {
        "ReduceSum"
    }

    fn shape(&self, inputs: &[Shape]) -> Result<Shape, String> {
        Ok(Shape::picture([1, 1], inputs[0].channels()))
    }

    fn plan(&self, site: &Site<'_>, p: &mut Planner<'_>) -> crate::Result<()> {
        let (out, src) = (site.out()?, p.src(site, 0));
        let step = AveragePoolStep {
            src,
            dst: p.buffers[out],
            window: Window::whole([src.shape[0], src.shape[1]]),
            count_include_pad: false,
            sum: true,
            scales: [p.quant(site.inputs[0]).scale, p.quant(out).scale],
            requant: p.requant(out, self.clamp),
        };
        p.emit(site, Step::AveragePool(step), "averagepool", Cost::default());
        Ok(())
    }

    fn reference(&self, inputs: &Inputs<'_>) -> Results {
        let shape = inputs.values[0].shape;
        let mut out = inputs.sink(self.clamp, Shape::picture([1, 1], shape.channels()));
        let (mult, exact) = inputs.ratio(0, out.quant.scale);
        let values: Vec<i64> = inputs.all(0).collect();
        for plane in values.chunks(shape.hwc[0] * shape.hwc[1]) {
            let sum: i64 = plane.iter().sum();
            out.push(sum as f32 * mult, sum as f64 * exact);
        }
        out.done()
    }
}

/// Mean of each window, or its sum.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct AveragePoolStep {
    /// Input.
    pub src: Buffer,
    /// Output.
    pub dst: Buffer,
    /// Geometry.
    pub window: Window,
    /// Padding counts.
    pub count_include_pad: bool,
    /// The sum instead of the mean.
    pub sum: bool,
    /// Input and output scale.
    pub scales: [f32; 2],
    /// Requantization.
    pub requant: Requant,
}

impl StepOp for AveragePoolStep {
    fn check(&self, c: &Checker<'_>) -> Check {
        c.buffers(&self.dst, &[&self.src])?;
        c.requant(&self.requant)?;
        c.window(&self.src, &self.dst, &self.window)
    }

    #[inline(always)]
    unsafe fn run(&self, cx: &Context<'_>) {
        let (src, dst, window, domain) = (&self.src, &self.dst, &self.window, cx.kernel.domain);
        // Channels are shared out, since a global pool has one pixel only.
        let channels = cx.share(dst.channels());
        let mut sums = [0i32; 64];
        for y in 0..dst.shape[0] {
            let rows = Taps::new(src, window, 0, y);
            for x in 0..dst.shape[1] {
                let columns = Taps::new(src, window, 1, x);
                let count = if self.sum {
                    1
                } else if self.count_include_pad {
                    window.positions(0, y, src.shape[0]) * window.positions(1, x, src.shape[1])
                } else {
                    (rows.count * columns.count).max(1)
                };
                let mult = self.scales[0] / (self.scales[1] * count as f32);
                for first in channels.clone().step_by(sums.len()) {
                    let n = sums.len().min(channels.end - first);
                    let sums = &mut sums[..n];
                    sums.fill(0);
                    each_tap(&rows, &columns, |iy, ix| {
                        // SAFETY: taps lie in the input, and have as many channels as the output.
                        let tap = unsafe { std::slice::from_raw_parts(cx.at(src, iy, ix).add(first), n) };
                        // A planned pool's sums fit, a forged one's may wrap.
                        sums.iter_mut().zip(tap).for_each(|(s, &t)| *s = s.wrapping_add(domain.decode(t) - src.zero_point));
                    });
                    // SAFETY: these channels of the pixel are this thread's.
                    let out = unsafe { std::slice::from_raw_parts_mut(cx.at(dst, y, x).add(first), n) };
                    out.iter_mut().zip(&*sums).for_each(|(o, &s)| *o = self.requant.quantize(s as f32 * mult));
                }
            }
        }
    }

    fn dst(&self) -> Option<&Buffer> {
        Some(&self.dst)
    }
}
