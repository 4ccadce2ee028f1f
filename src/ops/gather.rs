//! The step of operators that move values and compute nothing: where each byte comes from is in tables.
#![allow(unsafe_code)]

use super::reference::{Inputs, Results};
use super::{Cost, Planner, Site, Step};
use crate::graph::{Clamp, Shape};
use crate::program::{AnyBlob, Blob, Buffer, Check, Checker, Context, StepOp, ensure};
use serde::{Deserialize, Serialize};

/// A channel's value in a pixel's cell: rows and columns from the cell's origin, and the channel there.
pub(super) type Place = [usize; 3];

/// Where the values of an output come from. Each output row has an origin in the input and a phase, each column likewise; each pair of phases
/// has for each channel a [`Place`] from that origin. Without origin or place, a value is the fill.
pub(super) struct Sources {
    /// Origin and phase of each output row.
    pub rows: Vec<(Option<usize>, usize)>,
    /// Origin and phase of each output column.
    pub columns: Vec<(Option<usize>, usize)>,
    /// For each row phase, for each column phase: a place for each output channel.
    pub cells: Vec<Vec<Option<Place>>>,
}

impl Sources {
    /// Whole pixels of `channels`, from these rows and columns.
    pub fn pixels(rows: Vec<Option<usize>>, columns: Vec<Option<usize>>, channels: impl Iterator<Item = Option<usize>>) -> Self {
        let one_phase = |side: Vec<Option<usize>>| side.into_iter().map(|origin| (origin, 0)).collect();
        let cell = channels.map(|c| c.map(|c| [0, 0, c])).collect();
        Sources { rows: one_phase(rows), columns: one_phase(columns), cells: vec![cell] }
    }

    /// The step that writes them from pixel `origin` of `dst` on. `fill` is a byte in the kernels' domain.
    pub fn step(self, src: Buffer, dst: Buffer, origin: [usize; 2], fill: u8) -> GatherStep {
        let side = |side: &[(Option<usize>, usize)]| -> Vec<i32> {
            side.iter().flat_map(|&(origin, phase)| [origin.map_or(-1, |o| o as i32), phase as i32]).collect()
        };
        let (mut runs, mut starts): (Vec<i32>, Vec<i32>) = (vec![], vec![0]);
        for cell in &self.cells {
            let first = runs.len();
            for place in cell {
                let [dy, dx, channel] = place.map_or([0, 0, -1], |p| p.map(|v| v as i32));
                match runs[first..].as_chunks_mut::<4>().0.last_mut() {
                    Some([y, x, c, n]) if [*y, *x] == [dy, dx] && (if *c < 0 { channel < 0 } else { *c + *n == channel }) => *n += 1,
                    _ => runs.extend([dy, dx, channel, 1]),
                }
            }
            starts.push((runs.len() / 4) as i32);
        }
        let (rows, columns) = (side(&self.rows).into(), side(&self.columns).into());
        GatherStep { src, dst, origin, rows, columns, runs: runs.into(), starts: starts.into(), fill, table: Blob::default() }
    }

    /// Emits the step of an operator with one input, which keeps its quantization.
    pub fn plan(self, site: &Site<'_>, p: &mut Planner<'_>, fill: u8) -> crate::Result<()> {
        let out = site.out()?;
        same_quantization(site, p)?;
        let step = self.step(p.src(site, 0), p.buffers[out], [0, 0], fill);
        p.emit(site, Step::Gather(step), "copy", Cost::default());
        Ok(())
    }
}

/// Values that are only moved keep their quantization.
pub(super) fn same_quantization(site: &Site<'_>, p: &Planner<'_>) -> crate::Result<()> {
    match p.quant(site.inputs[0]) == p.quant(site.out()?) {
        true => Ok(()),
        false => Err(site.shape_error("input and output must share their quantization")),
    }
}

/// The definition of an operator that moves values: `source` tells where channel, row and column come from; `fill` is meant where it tells
/// nothing, as a distance from the zero point.
pub(super) fn reference(inputs: &Inputs<'_>, shape: Shape, fill: i64, source: impl Fn([usize; 3]) -> Option<[usize; 3]>) -> Results {
    let x = inputs.values[0];
    let mut out = inputs.sink(Clamp::default(), shape);
    let [h, w, channels] = shape.hwc;
    for c in 0..channels {
        for (y, x_) in (0..h).flat_map(|y| (0..w).map(move |x| (y, x))) {
            let q = source([c, y, x_]).map_or(fill, |[c, y, x_]| inputs.centred(0, x.at(c, y, x_)));
            out.push(q as f32, q as f64);
        }
    }
    out.done()
}

/// Bytes from elsewhere.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct GatherStep {
    /// Input.
    pub src: Buffer,
    /// Output.
    pub dst: Buffer,
    /// The output's pixel from which on it is written.
    pub origin: [usize; 2],
    /// Origin (−1: fill) and phase of each row that is written.
    #[serde(skip)]
    pub rows: Blob<i32>,
    /// Origin (−1: fill) and phase of each column.
    #[serde(skip)]
    pub columns: Blob<i32>,
    /// Stretches of channels: row and column from the origin, first channel (−1: fill), length.
    #[serde(skip)]
    pub runs: Blob<i32>,
    /// Where each pair of phases starts in `runs`, and the end.
    #[serde(skip)]
    pub starts: Blob<i32>,
    /// What takes the place of missing values.
    pub fill: u8,
    /// What becomes of each byte; empty: itself.
    #[serde(skip)]
    pub table: Blob<u8>,
}

impl GatherStep {
    /// The runs of a pair of phases.
    #[inline(always)]
    fn cell(&self, phase: usize) -> &[[i32; 4]] {
        let (start, end) = (self.starts[phase] as usize, self.starts[phase + 1] as usize);
        &self.runs.as_chunks::<4>().0[start..end]
    }
}

impl StepOp for GatherStep {
    fn check(&self, c: &Checker<'_>) -> Check {
        let (src, dst) = (&self.src, &self.dst);
        c.buffers(dst, &[src])?;
        ensure(matches!(self.table.len(), 0 | 256), "its table has no 256 entries")?;
        let (rows, columns) = (self.rows.as_chunks::<2>().0, self.columns.as_chunks::<2>().0);
        let fits =
            |side: usize, lines: &[[i32; 2]]| self.origin[side] <= dst.shape[side] && lines.len() <= dst.shape[side] - self.origin[side];
        ensure(fits(0, rows) && fits(1, columns), "it writes more than its output")?;
        // As i64, no sum of two of these overflows.
        let most = |values: &mut dyn Iterator<Item = i32>| values.max().map_or(0, i64::from);
        let phases = |lines: &[[i32; 2]]| most(&mut lines.iter().map(|l| l[1])) + 1;
        let sound = rows.iter().chain(columns).all(|l| l[0] >= -1 && l[1] >= 0);
        ensure(sound && phases(rows) * phases(columns) + 1 == self.starts.len() as i64, "its phases are out of range")?;
        let runs = self.runs.as_chunks::<4>().0;
        let ordered = self.starts.windows(2).all(|s| s[0] <= s[1]) && self.starts.first() == Some(&0);
        ensure(ordered && self.starts.last().is_some_and(|&e| e as usize == runs.len()), "its table of runs is out of order")?;
        let channels = |r: &[i32; 4]| i64::from(r[2]) + i64::from(r[3]) <= src.channels() as i64;
        ensure(
            runs.iter().all(|r| r[0] >= 0 && r[1] >= 0 && r[2] >= -1 && r[3] >= 1 && (r[2] < 0 || channels(r))),
            "a run is out of range",
        )?;
        let whole = |w: &[i32]| runs[w[0] as usize..w[1] as usize].iter().map(|r| i64::from(r[3])).sum::<i64>() == dst.channels() as i64;
        ensure(self.starts.windows(2).all(whole), "its runs do not fill a pixel")?;
        let reach = |side: usize, lines: &[[i32; 2]]| {
            let farthest = most(&mut lines.iter().map(|l| l[0])).max(0) + most(&mut runs.iter().map(|r| r[side]));
            farthest < src.shape[side] as i64
        };
        ensure(reach(0, rows) && reach(1, columns), "it reads beyond its input")
    }

    #[inline(always)]
    unsafe fn run(&self, cx: &Context<'_>) {
        let (src, dst) = (&self.src, &self.dst);
        let (rows, columns) = (self.rows.as_chunks::<2>().0, self.columns.as_chunks::<2>().0);
        let phases = columns.iter().map(|c| c[1]).max().unwrap_or(0) as usize + 1;
        let (channels, table) = (dst.channels(), self.table.first_chunk::<256>());
        let dense = !src.is_view() && !dst.is_view();
        for y in cx.share(rows.len()) {
            let [from_row, row_phase] = rows[y];
            let mut x = 0;
            while let Some(&[from, phase]) = columns.get(x) {
                let runs = self.cell(row_phase as usize * phases + phase as usize);
                let (to_y, to_x) = (self.origin[0] + y, self.origin[1] + x);
                // Neighbours that come from neighbours, whole.
                let mut pixels = 1;
                if let [[_, _, 0, n]] = *runs
                    && dense
                    && from >= 0
                    && n as usize == src.channels()
                {
                    let next = |pixels: usize| columns.get(x + pixels).is_some_and(|c| *c == [from + pixels as i32, phase]);
                    while next(pixels) {
                        pixels += 1;
                    }
                }
                // SAFETY: rows are shared out; these pixels are the output's, as checked.
                let out = unsafe { cx.write(dst, to_y, to_x, pixels * channels) };
                x += pixels;
                if from_row < 0 || from < 0 {
                    out.fill(self.fill);
                    continue;
                }
                let (from_y, from_x) = (from_row as usize, from as usize);
                if runs.len() == channels && pixels == 1 {
                    // Single channels.
                    for (o, &[dy, dx, c, _]) in out.iter_mut().zip(runs) {
                        // SAFETY: the channel is one of the input's, as checked.
                        *o = if c < 0 {
                            self.fill
                        } else {
                            unsafe { *cx.at(src, from_y + dy as usize, from_x + dx as usize).add(c as usize) }
                        };
                    }
                } else {
                    let mut rest = &mut *out;
                    for &[dy, dx, c, n] in runs {
                        let n = n as usize * pixels;
                        let Some((part, left)) = rest.split_at_mut_checked(n) else { break };
                        if c < 0 {
                            part.fill(self.fill);
                        } else {
                            // SAFETY: these channels are the input's, as checked.
                            let pixel = unsafe { cx.at(src, from_y + dy as usize, from_x + dx as usize).add(c as usize) };
                            // SAFETY: as above, and input and output do not overlap.
                            unsafe { std::ptr::copy_nonoverlapping(pixel.cast_const(), part.as_mut_ptr(), n) };
                        }
                        rest = left;
                    }
                }
                if let Some(table) = table {
                    out.iter_mut().for_each(|o| *o = table[usize::from(*o)]);
                }
            }
        }
    }

    fn dst(&self) -> Option<&Buffer> {
        Some(&self.dst)
    }

    fn blobs(&mut self) -> Vec<&mut dyn AnyBlob> {
        vec![&mut self.rows, &mut self.columns, &mut self.runs, &mut self.starts, &mut self.table]
    }

    fn addresses(&mut self) -> Vec<&mut dyn AnyBlob> {
        vec![&mut self.rows, &mut self.columns, &mut self.runs, &mut self.starts]
    }
}
