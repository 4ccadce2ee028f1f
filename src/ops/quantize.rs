//! A float value from outside the region becomes bytes.
#![allow(unsafe_code)]

use super::reference::{Inputs, Results};
use super::{Cost, Operator, Planner, Site, Step};
use crate::graph::{Clamp, Shape};
use crate::kernels::Requant;
use crate::pixels::Pixels;
use crate::program::{Buffer, Check, Checker, Context, StepOp, ensure};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// ONNX `QuantizeLinear` of a float value: `saturate(round_half_even(x / scale) + zero_point)`; NaN becomes the zero point.
#[derive(Debug, Clone)]
pub struct Quantize {
    /// ONNX name of the float value.
    pub source: String,
}

impl Operator for Quantize {
    fn name(&self) -> &'static str {
        "Quantize"
    }

    /// Its input is the source.
    fn shape(&self, inputs: &[Shape]) -> Result<Shape, String> {
        Ok(inputs[0])
    }

    fn source(&self) -> Option<&str> {
        Some(&self.source)
    }

    fn plan(&self, site: &Site<'_>, p: &mut Planner<'_>) -> crate::Result<()> {
        let out = site.out()?;
        let step = QuantizeStep {
            source: p.source(site, &self.source)?,
            dst: p.buffers[out],
            scale: p.quant(out).scale,
            requant: p.requant(out, Clamp::default()),
        };
        p.emit(site, Step::Quantize(step), "quantize", Cost::default());
        Ok(())
    }

    fn reference(&self, inputs: &Inputs<'_>) -> Results {
        let source = &inputs.sources[self.source.as_str()];
        let mut out = inputs.sink(Clamp::default(), source.shape);
        for &v in source.data {
            out.push(v / out.quant.scale, f64::from(v) / f64::from(out.quant.scale));
        }
        out.done()
    }
}

/// f32 NCHW source → bytes.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct QuantizeStep {
    /// Index of the source.
    pub source: usize,
    /// Output.
    pub dst: Buffer,
    /// Divides before rounding.
    pub scale: f32,
    /// Requantization.
    pub requant: Requant,
}

impl StepOp for QuantizeStep {
    fn check(&self, c: &Checker<'_>) -> Check {
        c.buffers(&self.dst, &[])?;
        c.requant(&self.requant)?;
        ensure(self.scale.is_finite() && self.scale > 0.0, "its scale is not positive")?;
        Checker::port(c.sources, self.source, self.dst.values())
    }

    #[inline(always)]
    unsafe fn run(&self, cx: &Context<'_>) {
        let (dst, scale, requant) = (&self.dst, self.scale, &self.requant);
        let [h, w, c] = dst.shape;
        // SAFETY: rows are shared out, and pixels lie in the buffer; the picture, if there is one, or the source outlives the inference.
        unsafe {
            if !cx.memory.pixels.is_null() {
                let row = |y: usize| {
                    let spans = dst.spans();
                    (0..spans.count).map(move |s| cx.write(dst, y, s * spans.pixels, spans.bytes))
                };
                return quantize_pixels(&*cx.memory.pixels, cx.share(h), row, scale, requant);
            }
            let input = *cx.memory.inputs.add(self.source);
            for y in cx.share(h) {
                let row = |ch: usize| &input[(ch * h + y) * w..][..w];
                match c {
                    1 if !dst.is_view() => quantize_row([row(0)], cx.write(dst, y, 0, w), scale, requant),
                    3 if !dst.is_view() => quantize_row([row(0), row(1), row(2)], cx.write(dst, y, 0, 3 * w), scale, requant),
                    _ => {
                        let out = cx.at(dst, y, 0);
                        for ch in 0..c {
                            for (x, &v) in row(ch).iter().enumerate() {
                                *out.add(x * dst.pixel + ch) = quantize(v, scale, requant);
                            }
                        }
                    }
                }
            }
        }
    }

    fn dst(&self) -> Option<&Buffer> {
        Some(&self.dst)
    }
}

/// Quantizes one picture row of C planes and interleaves them.
#[inline(always)]
fn quantize_row<const C: usize>(planes: [&[f32]; C], out: &mut [u8], scale: f32, requant: &Requant) {
    const BLOCK: usize = 64;
    let mut bytes = [[0u8; BLOCK]; C];
    for (block, out) in out.chunks_mut(BLOCK * C).enumerate() {
        let n = out.len() / C;
        for (bytes, plane) in bytes.iter_mut().zip(planes) {
            for (b, &v) in bytes.iter_mut().zip(&plane[block * BLOCK..][..n]) {
                *b = quantize(v, scale, requant);
            }
        }
        for (x, pixel) in out.as_chunks_mut::<C>().0.iter_mut().enumerate() {
            *pixel = std::array::from_fn(|ch| bytes[ch][x]);
        }
    }
}

/// Quantizes rows `rows` of a picture: each byte becomes the byte that its value is quantized to. A row of the output comes in stretches of
/// whole pixels.
#[inline(always)]
fn quantize_pixels<'a, I: Iterator<Item = &'a mut [u8]>>(
    pixels: &Pixels<'_>,
    rows: Range<usize>,
    out: impl Fn(usize) -> I,
    scale: f32,
    requant: &Requant,
) {
    let channels = pixels.channels.len();
    for (channel, (byte, values)) in pixels.channels.iter().enumerate() {
        let mut table = [0u8; 256];
        table.iter_mut().zip(values).for_each(|(q, &v)| *q = quantize(v, scale, requant));
        for y in rows.clone() {
            let mut row = &pixels.bytes[y * pixels.row_stride..];
            for out in out(y) {
                let source = row.iter().skip(*byte).step_by(channels);
                out.iter_mut().skip(channel).step_by(channels).zip(source).for_each(|(q, &v)| *q = table[usize::from(v)]);
                row = &row[out.len().min(row.len())..];
            }
        }
    }
}

#[inline(always)]
fn quantize(v: f32, scale: f32, requant: &Requant) -> u8 {
    let v = v / scale;
    requant.quantize(if v.is_nan() { 0.0 } else { v })
}
