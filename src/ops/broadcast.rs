//! What operators on two tensors share: each side of one may be 1 where the other's is not, and its values then count for all.
#![allow(unsafe_code)]

use super::reference::Inputs;
use crate::graph::Shape;
use crate::program::{Buffer, Check, Checker, Context, Spans, ensure};

/// The common shape (ONNX multidirectional broadcasting of two tensors of one rank).
pub(super) fn shape(inputs: &[Shape]) -> Result<Shape, String> {
    let (a, b) = (inputs[0], inputs[1]);
    if a.hwc == b.hwc {
        return Ok(a);
    }
    let differ = || format!("{:?} and {:?} have no common shape", a.onnx(), b.onnx());
    if a.flat || b.flat {
        return Err(differ());
    }
    let mut hwc = a.hwc;
    for (side, &other) in hwc.iter_mut().zip(&b.hwc) {
        *side = match (*side, other) {
            (x, y) if x == y || y == 1 => x,
            (1, y) => y,
            _ => return Err(differ()),
        };
    }
    Ok(Shape { hwc, flat: false })
}

/// Both inputs' values, as distances from their zero points, for each value of `shape`, C×H×W.
pub(super) fn pairs<'a>(inputs: &'a Inputs<'_>, shape: Shape) -> impl Iterator<Item = (i64, i64)> + 'a {
    let [h, w, channels] = shape.hwc;
    let at = move |i: usize, c: usize, y: usize, x: usize| {
        let value = inputs.values[i];
        let [h, w, channels] = value.shape.hwc;
        inputs.centred(i, value.at(c.min(channels - 1), y.min(h - 1), x.min(w - 1)))
    };
    let all = (0..channels * h * w).map(move |i| (i / (h * w), i / w % h, i % w));
    all.map(move |(c, y, x)| (at(0, c, y, x), at(1, c, y, x)))
}

/// Fails unless each side of the inputs is 1 or the output's.
pub(super) fn check(c: &Checker<'_>, dst: &Buffer, src: &[Buffer; 2]) -> Check {
    c.buffers(dst, &[&src[0], &src[1]])?;
    let fits = |b: &Buffer| b.shape.iter().zip(&dst.shape).all(|(&n, &out)| n == 1 || n == out);
    ensure(fits(&src[0]) && fits(&src[1]), "its inputs do not fit its output's shape")
}

/// One thread's share of `dst = f(a, b)`, byte by byte.
///
/// # Safety
/// All three have passed [`check`], and this is a step's [`run`](crate::program::StepOp::run).
#[inline(always)]
pub(super) unsafe fn run(cx: &Context<'_>, dst: &Buffer, [a, b]: &[Buffer; 2], f: impl Fn(u8, u8) -> u8) {
    let [_, w, channels] = dst.shape;
    let spans = match a.shape == dst.shape && b.shape == dst.shape {
        true => dst.spans().and(a.spans()).and(b.spans()),
        false => Spans { count: w, pixels: 1, bytes: channels },
    };
    for y in cx.share(dst.shape[0]) {
        for x in (0..spans.count).map(|s| s * spans.pixels) {
            // SAFETY: rows are shared out; each input has this pixel or the one that stands for it, and that has one channel or all.
            let (out, a, b) = unsafe {
                let of = |t: &Buffer| {
                    let bytes = if t.channels() == channels { spans.bytes } else { 1 };
                    cx.read(t, y.min(t.shape[0] - 1), x.min(t.shape[1] - 1), bytes)
                };
                (cx.write(dst, y, x, spans.bytes), of(a), of(b))
            };
            match (a, b) {
                (&[a], b) if out.len() > 1 => out.iter_mut().zip(b).for_each(|(o, &b)| *o = f(a, b)),
                (a, &[b]) if out.len() > 1 => out.iter_mut().zip(a).for_each(|(o, &a)| *o = f(a, b)),
                (a, b) => out.iter_mut().zip(a).zip(b).for_each(|((o, &a), &b)| *o = f(a, b)),
            }
        }
    }
}
