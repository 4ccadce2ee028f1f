//! Another height and width: ONNX `Resize`.
//!
//! Coordinates are computed in f32, operation by operation as ONNX Runtime does, so that both take the same pixels.
#![allow(unsafe_code)]

use super::gather::{Sources, reference};
use super::reference::{Inputs, Results};
use super::{Cost, Operator, Planner, Site, Step};
use crate::graph::{Clamp, Shape};
use crate::kernels::Requant;
use crate::program::{AnyBlob, Blob, Buffer, Check, Checker, Context, StepOp, ensure};
use serde::{Deserialize, Serialize};

/// Where an output pixel lies in the input (`coordinate_transformation_mode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coordinates {
    /// x / scale
    Asymmetric,
    /// (x + ½) / scale − ½
    HalfPixel,
    /// As `HalfPixel`, but 0 where the output has one pixel.
    PytorchHalfPixel,
    /// x · (in − 1) / (out − 1)
    AlignCorners,
}

/// Which pixel is nearest (`nearest_mode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nearest {
    /// The one before.
    Floor,
    /// The one after.
    Ceil,
    /// The nearer one, of two the one before.
    RoundPreferFloor,
    /// The nearer one, of two the one after.
    RoundPreferCeil,
}

/// The output's height and width.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ResizeTo {
    /// So many times the input's, rounded down.
    Scales([f32; 2]),
    /// These.
    Sizes([usize; 2]),
}

/// Geometry of a resize.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Resize {
    /// Size.
    pub to: ResizeTo,
    /// Coordinates.
    pub coordinates: Coordinates,
}

impl Resize {
    fn shape(&self, x: &Shape) -> Result<Shape, String> {
        let side = |d: usize| match self.to {
            ResizeTo::Sizes(sizes) => sizes[d],
            // Saturates.
            ResizeTo::Scales(scales) => (x.hwc[d] as f32 * scales[d]).floor() as usize,
        };
        let hw = [side(0), side(1)];
        if x.flat || hw.iter().any(|n| !(1..=crate::program::MAX_DIM).contains(n)) {
            return Err(format!("{:?} cannot get the size {hw:?}", x.onnx()));
        }
        Ok(Shape::picture(hw, x.channels()))
    }

    /// Where row or column `i` of `out` lies among those of `size`.
    fn coordinate(&self, d: usize, i: usize, size: usize, out: usize) -> f32 {
        let scale = match self.to {
            ResizeTo::Scales(scales) => scales[d],
            ResizeTo::Sizes(_) => out as f32 / size as f32,
        };
        let at = i as f32;
        match self.coordinates {
            _ if scale == 1.0 => at,
            Coordinates::Asymmetric => at / scale,
            Coordinates::PytorchHalfPixel if out <= 1 => 0.0,
            Coordinates::HalfPixel | Coordinates::PytorchHalfPixel => (at + 0.5) / scale - 0.5,
            Coordinates::AlignCorners if out == 1 => 0.0,
            Coordinates::AlignCorners => at * (size - 1) as f32 / (out - 1) as f32,
        }
    }

    /// The two rows or columns between which `i` lies, and the weights of the first and the second.
    fn between(&self, d: usize, i: usize, size: usize, out: usize) -> ([usize; 2], [f32; 2]) {
        let at = self.coordinate(d, i, size, out).clamp(0.0, (size - 1) as f32);
        let first = (at as usize).min(size - 1);
        let second = (first + 1).min(size - 1);
        let weights = if first == second { [0.5, 0.5] } else { [(at - second as f32).abs(), (at - first as f32).abs()] };
        ([first, second], weights)
    }
}

/// ONNX `Resize` of height and width, mode `nearest`: same quantization in and out.
#[derive(Debug, Clone)]
pub struct ResizeNearest {
    /// Geometry.
    pub resize: Resize,
    /// Which pixel.
    pub nearest: Nearest,
}

impl ResizeNearest {
    fn at(&self, d: usize, i: usize, size: usize, out: usize) -> usize {
        let at = self.resize.coordinate(d, i, size, out);
        let near = match self.nearest {
            Nearest::Floor => at.floor(),
            Nearest::Ceil => at.ceil(),
            Nearest::RoundPreferFloor if at == at.trunc() + 0.5 => at.trunc(),
            Nearest::RoundPreferFloor | Nearest::RoundPreferCeil => at.round(),
        };
        (near.max(0.0) as usize).min(size - 1)
    }
}

impl Operator for ResizeNearest {
    fn name(&self) -> &'static str {
        "Resize"
    }

    fn shape(&self, inputs: &[Shape]) -> Result<Shape, String> {
        self.resize.shape(&inputs[0])
    }

    fn plan(&self, site: &Site<'_>, p: &mut Planner<'_>) -> crate::Result<()> {
        let ([in_h, in_w, channels], [h, w, _]) = (p.shapes[site.inputs[0]].hwc, p.shapes[site.out()?].hwc);
        let side = |d: usize, size: usize, out: usize| (0..out).map(|i| Some(self.at(d, i, size, out))).collect();
        Sources::pixels(side(0, in_h, h), side(1, in_w, w), (0..channels).map(Some)).plan(site, p, 0)
    }

    fn reference(&self, inputs: &Inputs<'_>) -> Results {
        let x = inputs.values[0].shape;
        let shape = self.resize.shape(&x).expect("a size");
        let ([in_h, in_w, _], [h, w, _]) = (x.hwc, shape.hwc);
        reference(inputs, shape, 0, |[c, y, x]| Some([c, self.at(0, y, in_h, h), self.at(1, x, in_w, w)]))
    }
}

/// ONNX `Resize` of height and width, mode `linear`, not antialiased: with rows y, y' and columns x, x' around a pixel, and b, b', a, a' their
/// weights, `(a·b·q(y, x) + a'·b·q(y, x') + a·b'·q(y', x) + a'·b'·q(y', x')) · (s_x / s_y)`, from left to right in f32.
#[derive(Debug, Clone)]
pub struct ResizeLinear {
    /// Geometry.
    pub resize: Resize,
    /// Fused activation.
    pub clamp: Clamp,
}

impl Operator for ResizeLinear {
    fn name(&self) -> &'static str {
        "Resize"
    }

    fn shape(&self, inputs: &[Shape]) -> Result<Shape, String> {
        self.resize.shape(&inputs[0])
    }

    fn plan(&self, site: &Site<'_>, p: &mut Planner<'_>) -> crate::Result<()> {
        let (x, out) = (site.inputs[0], site.out()?);
        let mult = p.quant(x).scale / p.quant(out).scale;
        site.check_multipliers(&[mult])?;
        let side = |d: usize| {
            let (size, out) = (p.shapes[x].hwc[d], p.shapes[out].hwc[d]);
            let lines: Vec<_> = (0..out).map(|i| self.resize.between(d, i, size, out)).collect();
            let at: Vec<i32> = lines.iter().flat_map(|l| l.0.map(|v| v as i32)).collect();
            let weights: Vec<f32> = lines.iter().flat_map(|l| l.1).collect();
            (at, weights)
        };
        let ((rows, row_weights), (columns, column_weights)) = (side(0), side(1));
        let step = ResizeStep {
            src: p.src(site, 0),
            dst: p.buffers[out],
            lines: [rows, columns].concat().into(),
            weights: [row_weights, column_weights].concat().into(),
            mult,
            requant: p.requant(out, self.clamp),
        };
        p.emit(site, Step::ResizeLinear(step), "bilinear", Cost::default());
        Ok(())
    }

    fn reference(&self, inputs: &Inputs<'_>) -> Results {
        let x = inputs.values[0];
        let shape = self.resize.shape(&x.shape).expect("a size");
        let ([in_h, in_w, _], [h, w, channels]) = (x.shape.hwc, shape.hwc);
        let mut out = inputs.sink(self.clamp, shape);
        let (mult, exact_mult) = inputs.ratio(0, out.quant.scale);
        for c in 0..channels {
            for (oy, ox) in (0..h).flat_map(|y| (0..w).map(move |x| (y, x))) {
                let ([y, y2], [b, b2]) = self.resize.between(0, oy, in_h, h);
                let ([x1, x2], [a, a2]) = self.resize.between(1, ox, in_w, w);
                let q = |y: usize, x_: usize| inputs.centred(0, x.at(c, y, x_)) as f32;
                let v = a * b * q(y, x1) + a2 * b * q(y, x2) + a * b2 * q(y2, x1) + a2 * b2 * q(y2, x2);
                let [a, a2, b, b2] = [a, a2, b, b2].map(f64::from);
                let q = |y: usize, x_: usize| inputs.centred(0, x.at(c, y, x_)) as f64;
                let exact = a * b * q(y, x1) + a2 * b * q(y, x2) + a * b2 * q(y2, x1) + a2 * b2 * q(y2, x2);
                out.push(v * mult, exact * exact_mult);
            }
        }
        out.done()
    }
}

/// Bilinear interpolation.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ResizeStep {
    /// Input.
    pub src: Buffer,
    /// Output.
    pub dst: Buffer,
    /// The two input rows of each output row, then the two input columns of each output column.
    #[serde(skip)]
    pub lines: Blob<i32>,
    /// Their weights.
    #[serde(skip)]
    pub weights: Blob<f32>,
    /// Input scale over output scale.
    pub mult: f32,
    /// Requantization.
    pub requant: Requant,
}

impl StepOp for ResizeStep {
    fn check(&self, c: &Checker<'_>) -> Check {
        let (src, dst) = (&self.src, &self.dst);
        c.buffers(dst, &[src])?;
        c.requant(&self.requant)?;
        ensure(src.channels() == dst.channels(), "input and output differ in channels")?;
        let count = 2 * (dst.shape[0] + dst.shape[1]);
        ensure(self.lines.len() == count && self.weights.len() == count, "its tables do not fit its output")?;
        let (rows, columns) = self.lines.split_at(2 * dst.shape[0]);
        let inside = |lines: &[i32], size: usize| lines.iter().all(|&i| usize::try_from(i).is_ok_and(|i| i < size));
        ensure(inside(rows, src.shape[0]) && inside(columns, src.shape[1]), "it reads beyond its input")
    }

    #[inline(always)]
    unsafe fn run(&self, cx: &Context<'_>) {
        let (src, dst, domain) = (&self.src, &self.dst, cx.kernel.domain);
        let (lines, weights) = (self.lines.as_chunks::<2>().0, self.weights.as_chunks::<2>().0);
        let channels = dst.channels();
        for oy in cx.share(dst.shape[0]) {
            let (rows, [b, b2]) = (lines[oy], weights[oy]);
            for ox in 0..dst.shape[1] {
                let (columns, [a, a2]) = (lines[dst.shape[0] + ox], weights[dst.shape[0] + ox]);
                let factors = [a * b, a2 * b, a * b2, a2 * b2];
                // SAFETY: rows are shared out; rows and columns lie in the input, as checked, which has as many channels as the output.
                let (out, [p, q, r, s]) = unsafe {
                    let pixel = |y: usize, x: usize| cx.read(src, rows[y] as usize, columns[x] as usize, channels);
                    (cx.write(dst, oy, ox, channels), [pixel(0, 0), pixel(0, 1), pixel(1, 0), pixel(1, 1)])
                };
                for ((((o, &p), &q), &r), &s) in out.iter_mut().zip(p).zip(q).zip(r).zip(s) {
                    let real = |byte: u8| (domain.decode(byte) - src.zero_point) as f32;
                    let v = factors[0] * real(p) + factors[1] * real(q) + factors[2] * real(r) + factors[3] * real(s);
                    *o = self.requant.quantize(v * self.mult);
                }
            }
        }
    }

    fn dst(&self) -> Option<&Buffer> {
        Some(&self.dst)
    }

    fn blobs(&mut self) -> Vec<&mut dyn AnyBlob> {
        vec![&mut self.lines, &mut self.weights]
    }

    fn addresses(&mut self) -> Vec<&mut dyn AnyBlob> {
        vec![&mut self.lines]
    }
}
