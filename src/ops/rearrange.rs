//! Reshapes and transpositions in a row: channel shuffles, and pixel shuffles as exporters spell them.

use super::gather::{Place, Sources};
use super::reference::{Inputs, Results};
use super::{Operator, Planner, Site};
use crate::graph::{Clamp, Shape};

/// Largest tensor that is rearranged, values: its sources are listed one by one for a moment.
const MAX_VALUES: usize = 1 << 24;
/// Longest period of sources that is looked for, pixels of a side.
const MAX_PERIOD: usize = 8;

/// One change of how a tensor is seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum View {
    /// ONNX `Reshape`: dimensions, 0 for the one that stands there, −1 for what is left.
    Reshape(Vec<i64>),
    /// ONNX `Transpose`: the axis that comes at each place.
    Transpose(Vec<usize>),
}

/// ONNX `Reshape` and `Transpose` in a row, from `[1, C, H, W]` or `[1, C]` to one of these: same quantization in and out.
#[derive(Debug, Clone)]
pub struct Rearrange {
    /// In order.
    pub views: Vec<View>,
}

/// The dimensions after a reshape.
fn reshape(dims: &[usize], to: &[i64]) -> Option<Vec<usize>> {
    let total = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
    let known = |(i, &d): (usize, &i64)| match d {
        0 => dims.get(i).copied(),
        -1 => Some(1),
        _ => usize::try_from(d).ok(),
    };
    let mut out: Vec<usize> = to.iter().enumerate().map(known).collect::<Option<_>>()?;
    let product = out.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).filter(|p| *p > 0)?;
    if let Some(free) = to.iter().position(|&d| d == -1) {
        out[free] = total.is_multiple_of(product).then_some(total / product)?;
        return (!to[free + 1..].contains(&-1)).then_some(out);
    }
    (product == total).then_some(out)
}

fn transpose(dims: &[usize], order: &[usize]) -> Option<Vec<usize>> {
    let mut sorted = order.to_vec();
    sorted.sort_unstable();
    (sorted.into_iter().eq(0..dims.len())).then(|| order.iter().map(|&axis| dims[axis]).collect())
}

impl Rearrange {
    /// Dimensions before each view, and after the last.
    fn dims(&self, x: &Shape) -> Result<Vec<Vec<usize>>, String> {
        let mut all = vec![x.onnx()];
        for view in &self.views {
            let before = &all[all.len() - 1];
            let after = match view {
                View::Reshape(to) => reshape(before, to),
                View::Transpose(order) => transpose(before, order),
            };
            all.push(after.ok_or_else(|| format!("{before:?} cannot be seen as {view:?} says"))?);
        }
        Ok(all)
    }

    /// For each value of the output, in ONNX's order, where it stands in the input.
    fn sources(&self, x: &Shape) -> Result<Vec<u32>, String> {
        let dims = self.dims(x)?;
        let mut from: Vec<u32> = (0..x.values() as u32).collect();
        for (view, before) in self.views.iter().zip(&dims) {
            let View::Transpose(order) = view else { continue };
            let strides: Vec<usize> = (0..before.len()).map(|axis| before[axis + 1..].iter().product()).collect();
            let mut index = vec![0; order.len()];
            let mut at = 0;
            from = (0..from.len())
                .map(|_| {
                    let value = from[at];
                    // The next one: the last axis runs fastest.
                    for (i, &axis) in index.iter_mut().zip(order).rev() {
                        *i += 1;
                        at += strides[axis];
                        if *i < before[axis] {
                            break;
                        }
                        at -= *i * strides[axis];
                        *i = 0;
                    }
                    value
                })
                .collect();
        }
        Ok(from)
    }
}

impl Operator for Rearrange {
    fn name(&self) -> &'static str {
        "Rearrange"
    }

    fn shape(&self, inputs: &[Shape]) -> Result<Shape, String> {
        if inputs[0].values() > MAX_VALUES {
            return Err(format!("{:?} is too large to be rearranged", inputs[0].onnx()));
        }
        let dims = self.dims(&inputs[0])?.pop().unwrap_or_default();
        Shape::of_onnx(&dims).ok_or_else(|| format!("it makes {dims:?}; [1, C, H, W] or [1, C] is supported"))
    }

    fn plan(&self, site: &Site<'_>, p: &mut Planner<'_>) -> crate::Result<()> {
        let (x, out) = (p.shapes[site.inputs[0]], p.shapes[site.out()?]);
        let from = self.sources(&x).map_err(|why| site.shape_error(why))?;
        let ([in_h, in_w, _], [h, w, channels]) = (x.hwc, out.hwc);
        let source = |c: usize, y: usize, x: usize| -> Place {
            let at = from[(c * h + y) * w + x] as usize;
            [at / in_w % in_h, at % in_w, at / in_w / in_h]
        };
        let periods = |size: usize| (1..=MAX_PERIOD).chain([size]).filter(move |p| size.is_multiple_of(*p));
        let mut candidates: Vec<[usize; 2]> = periods(h).flat_map(|y| periods(w).map(move |x| [y, x])).collect();
        candidates.sort_by_key(|[y, x]| y * x);
        // The last of them, all pixels, always holds.
        let found = candidates.into_iter().find_map(|period| periodic(period, [h, w], channels, &source));
        found.ok_or_else(|| site.shape_error("its sources have no order"))?.plan(site, p, 0)
    }

    fn reference(&self, inputs: &Inputs<'_>) -> Results {
        let x = inputs.values[0];
        let shape = self.shape(&[x.shape]).expect("views that fit");
        let mut out = inputs.sink(Clamp::default(), shape);
        let dims = self.dims(&x.shape).expect("views that fit");
        let mut values: Vec<i64> = inputs.all(0).collect();
        for (i, view) in self.views.iter().enumerate() {
            let View::Transpose(order) = view else { continue };
            let (before, after) = (&dims[i], &dims[i + 1]);
            values = (0..values.len())
                .map(|mut at| {
                    let mut index = vec![0; order.len()];
                    for place in (0..order.len()).rev() {
                        index[order[place]] = at % after[place];
                        at /= after[place];
                    }
                    values[index.iter().zip(before).fold(0, |at, (i, d)| at * d + i)]
                })
                .collect();
        }
        values.into_iter().for_each(|q| out.push(q as f32, q as f64));
        out.done()
    }
}

/// Sources as tables, if they repeat after this many rows and columns but for the origin.
fn periodic([py, px]: [usize; 2], [h, w]: [usize; 2], channels: usize, source: &impl Fn(usize, usize, usize) -> Place) -> Option<Sources> {
    let cell = |y: usize, x: usize| (0..channels).map(|c| source(c, y, x)).collect::<Vec<Place>>();
    let cells: Vec<Vec<Place>> = (0..py).flat_map(|y| (0..px).map(move |x| (y, x))).map(|(y, x)| cell(y, x)).collect();
    let [y0, x0, _] = cells[0][0];
    let rows: Vec<usize> = (0..h).map(|y| source(0, y - y % py, 0)[0].checked_sub(y0)).collect::<Option<_>>()?;
    let columns: Vec<usize> = (0..w).map(|x| source(0, 0, x - x % px)[1].checked_sub(x0)).collect::<Option<_>>()?;
    let holds = (0..h).flat_map(|y| (0..w).map(move |x| (y, x))).all(|(y, x)| {
        let places = cells[y % py * px + x % px].iter().enumerate();
        places.into_iter().all(|(c, &[dy, dx, channel])| source(c, y, x) == [rows[y] + dy, columns[x] + dx, channel])
    });
    let side = |origins: Vec<usize>, period: usize| origins.into_iter().enumerate().map(|(i, o)| (Some(o), i % period)).collect();
    let places = |cell: Vec<Place>| cell.into_iter().map(Some).collect();
    holds.then(|| Sources { rows: side(rows, py), columns: side(columns, px), cells: cells.into_iter().map(places).collect() })
}
