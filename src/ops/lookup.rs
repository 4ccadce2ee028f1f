//! Functions of one byte, by a table of 256: another quantization for the same values, and every function of one value.
#![allow(unsafe_code)]

use super::reference::{Inputs, Results};
use super::{Cost, Expression, Operator, Planner, Site, Step};
use crate::graph::{Clamp, Shape};
use crate::kernels::lookup::look_up;
use crate::program::{AnyBlob, Blob, Buffer, Check, Checker, Context, StepOp, ensure};
use serde::{Deserialize, Serialize};

/// Another scale, zero point or range for the same values: `f32(x − zp)·s_x / s_y`.
#[derive(Debug, Clone)]
pub struct Requantize {
    /// Fused activation.
    pub clamp: Clamp,
}

/// A function of each value: `f(f32(x − zp)·s_x) / s_y`.
#[derive(Debug, Clone)]
pub struct Map {
    /// The function.
    pub function: Expression,
    /// Fused activation.
    pub clamp: Clamp,
}

impl Operator for Requantize {
    fn name(&self) -> &'static str {
        "Requantize"
    }

    fn shape(&self, inputs: &[Shape]) -> Result<Shape, String> {
        Ok(inputs[0])
    }

    fn plan(&self, site: &Site<'_>, p: &mut Planner<'_>) -> crate::Result<()> {
        plan(site, p, self.clamp, |x| x)
    }

    fn reference(&self, inputs: &Inputs<'_>) -> Results {
        reference(inputs, self.clamp, |x| x)
    }
}

impl Operator for Map {
    fn name(&self) -> &'static str {
        self.function.name()
    }

    fn shape(&self, inputs: &[Shape]) -> Result<Shape, String> {
        Ok(inputs[0])
    }

    fn plan(&self, site: &Site<'_>, p: &mut Planner<'_>) -> crate::Result<()> {
        plan(site, p, self.clamp, |x| self.function.at(x))
    }

    fn reference(&self, inputs: &Inputs<'_>) -> Results {
        reference(inputs, self.clamp, |x| self.function.at(x))
    }
}

fn plan(site: &Site<'_>, p: &mut Planner<'_>, clamp: Clamp, f: impl Fn(f32) -> f32) -> crate::Result<()> {
    let out = site.out()?;
    let step = LookupStep { src: p.src(site, 0), dst: p.buffers[out], table: p.table(site.inputs[0], out, clamp, f) };
    p.emit(site, Step::Lookup(step), "lookup", Cost::default());
    Ok(())
}

fn reference(inputs: &Inputs<'_>, clamp: Clamp, f: impl Fn(f32) -> f32) -> Results {
    let mut out = inputs.sink(clamp, inputs.values[0].shape);
    let (x, y) = (inputs.quants[0].scale, out.quant.scale);
    for q in inputs.all(0) {
        let v = f(q as f32 * x);
        out.push(v / y, f64::from(v) / f64::from(y));
    }
    out.done()
}

/// Any function of one byte.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct LookupStep {
    /// Input.
    pub src: Buffer,
    /// Output.
    pub dst: Buffer,
    /// Result of each byte.
    #[serde(skip)]
    pub table: Blob<u8>,
}

impl StepOp for LookupStep {
    fn check(&self, c: &Checker<'_>) -> Check {
        c.buffers(&self.dst, &[&self.src])?;
        ensure(self.table.len() == 256, "its table has no 256 entries")?;
        ensure(self.src.shape == self.dst.shape, "input and output differ in shape")
    }

    #[inline(always)]
    unsafe fn run(&self, cx: &Context<'_>) {
        let (src, dst) = (&self.src, &self.dst);
        let Some(table) = self.table.first_chunk::<256>() else { return };
        let spans = dst.spans().and(src.spans());
        for y in cx.share(dst.shape[0]) {
            for x in (0..spans.count).map(|s| s * spans.pixels) {
                // SAFETY: rows are shared out, and both have this shape.
                let (from, to) = unsafe { (cx.read(src, y, x, spans.bytes), cx.write(dst, y, x, spans.bytes)) };
                look_up(table, from, to);
            }
        }
    }

    fn dst(&self) -> Option<&Buffer> {
        Some(&self.dst)
    }

    fn blobs(&mut self) -> Vec<&mut dyn AnyBlob> {
        vec![&mut self.table]
    }
}
