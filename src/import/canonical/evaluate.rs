//! Computes a node whose inputs are constants. Sizes are bounded before anything is allocated.

use super::facts::slice_len;
use super::tensor::*;
use crate::import::onnx::*;
use std::collections::HashSet;

/// What is left of the bytes that constants may take.
pub struct Budget(pub u64);

/// Bytes that computed constants may take, beside what the file has paid for once more.
const SPARE_BYTES: u64 = 16 << 20;

impl Budget {
    /// For a graph with these constants.
    pub fn of(constants: &[TensorProto]) -> Budget {
        Budget(constants.iter().fold(SPARE_BYTES, |n, t| n.saturating_add(t.raw_data.len() as u64)))
    }

    /// Takes the bytes of a tensor; `None` if they are not there.
    fn take(&mut self, dims: &[i64], width: usize) -> Option<usize> {
        let count = dims.iter().try_fold(1i64, |n, &d| if d < 0 { None } else { n.checked_mul(d) })?;
        let bytes = u64::try_from(count).ok()?.checked_mul(width as u64)?;
        self.0 = self.0.checked_sub(bytes)?;
        usize::try_from(count).ok()
    }
}

/// The outputs of a node, or `None` where it is not computed here. Inputs are [raw](to_raw); absent ones are `None`.
pub fn evaluate(node: &NodeProto, inputs: &[Option<&TensorProto>], budget: &mut Budget) -> Option<Vec<TensorProto>> {
    let name = node.output.first()?;
    let whole_at = |i: usize| whole(inputs.get(i).copied().flatten()?);
    let at = |i: usize| inputs.get(i).copied().flatten();
    let wrap = |axis: i64, rank: usize| usize::try_from(if axis < 0 { axis + rank as i64 } else { axis }).ok().filter(|&a| a < rank);
    let one = |t: TensorProto| Some(vec![t]);
    match node.op_type.as_str() {
        "Identity" | "Dropout" => {
            let x = at(0)?;
            budget.take(&x.dims, width(x.data_type)?)?;
            one(TensorProto { name: name.clone(), ..x.clone() })
        }
        "Reshape" => reshaped(name, at(0)?, reshape_dims(at(0)?, &whole_at(1)?, attr_int(node, "allowzero", 0) != 0)?, budget),
        "Flatten" => {
            let x = at(0)?;
            let axis = attr_int(node, "axis", 1);
            let axis = usize::try_from(if axis < 0 { axis + x.dims.len() as i64 } else { axis }).ok().filter(|&a| a <= x.dims.len())?;
            reshaped(name, x, vec![x.dims[..axis].iter().product(), x.dims[axis..].iter().product()], budget)
        }
        "Squeeze" => {
            let x = at(0)?;
            let axes: Vec<usize> = match inputs.len() {
                1 => (0..x.dims.len()).filter(|&i| x.dims[i] == 1).collect(),
                _ => whole_at(1)?.into_iter().map(|a| wrap(a, x.dims.len())).collect::<Option<_>>()?,
            };
            let dims = x.dims.iter().enumerate().filter(|(i, _)| !axes.contains(i)).map(|(_, d)| *d).collect();
            reshaped(name, x, dims, budget)
        }
        "Unsqueeze" => {
            let (x, axes) = (at(0)?, whole_at(1)?);
            let rank = x.dims.len().checked_add(axes.len()).filter(|r| *r <= 64)?;
            let axes: HashSet<usize> = axes.into_iter().map(|a| wrap(a, rank)).collect::<Option<_>>()?;
            let mut rest = x.dims.iter().copied();
            let dims = (0..rank).map(|i| if axes.contains(&i) { Some(1) } else { rest.next() }).collect::<Option<_>>()?;
            reshaped(name, x, dims, budget)
        }
        "Transpose" => {
            let x = at(0)?;
            let rank = x.dims.len();
            let perm: Vec<usize> = match attr_ints(node, "perm") {
                [] => (0..rank).rev().collect(),
                perm => perm.iter().map(|&p| usize::try_from(p).ok()).collect::<Option<_>>()?,
            };
            let mut sorted = perm.clone();
            sorted.sort_unstable();
            if sorted.into_iter().ne(0..rank) {
                return None;
            }
            let dims: Vec<i64> = perm.iter().map(|&p| x.dims[p]).collect();
            let strides = strides(&x.dims);
            let moved = perm.iter().map(|&p| strides[p]).collect::<Vec<_>>();
            one(picked(name, x, &dims, 0, &moved, budget)?)
        }
        "Expand" => {
            let x = at(0)?;
            let dims = broadcast(&x.dims, &whole_at(1)?)?;
            let steps = broadcast_strides(&x.dims, &dims);
            one(picked(name, x, &dims, 0, &steps, budget)?)
        }
        "Slice" => {
            let x = at(0)?;
            let (starts, ends) = (whole_at(1)?, whole_at(2)?);
            let axes = if at(3).is_some() { whole_at(3)? } else { (0..starts.len() as i64).collect() };
            let by = if at(4).is_some() { whole_at(4)? } else { vec![1; starts.len()] };
            let (mut dims, mut steps, mut from) = (x.dims.clone(), strides(&x.dims), 0i64);
            for (i, &axis) in axes.iter().enumerate() {
                let axis = wrap(axis, dims.len())?;
                let (n, start, step) = (x.dims[axis], *starts.get(i)?, *by.get(i)?);
                dims[axis] = slice_len(n, start, *ends.get(i)?, step)?;
                let start = if start < 0 { start.saturating_add(n) } else { start };
                if dims[axis] > 0 {
                    from += start.clamp(0, n - 1) * steps[axis];
                }
                steps[axis] = steps[axis].checked_mul(step)?;
            }
            one(picked(name, x, &dims, from, &steps, budget)?)
        }
        "Split" => {
            let x = at(0)?;
            let axis = wrap(attr_int(node, "axis", 0), x.dims.len())?;
            let (n, count) = (x.dims[axis], node.output.len() as i64);
            let part = n / count + i64::from(n % count != 0);
            let sizes = if at(1).is_some() { whole_at(1)? } else { (0..count).map(|i| part.min(n - i * part)).collect() };
            if sizes.len() != node.output.len() || sizes.iter().any(|s| !(0..=n).contains(s)) || sizes.iter().sum::<i64>() != n {
                return None;
            }
            let (steps, mut from, mut parts) = (strides(&x.dims), 0, Vec::new());
            for (size, name) in sizes.into_iter().zip(&node.output) {
                let mut dims = x.dims.clone();
                dims[axis] = size;
                parts.push(picked(name, x, &dims, from * steps[axis], &steps, budget)?);
                from += size;
            }
            Some(parts)
        }
        "Concat" => {
            let all = (0..inputs.len()).map(at).collect::<Option<Vec<_>>>()?;
            let first = *all.first()?;
            let axis = wrap(attr_int(node, "axis", 1), first.dims.len())?;
            let same = |t: &&TensorProto| {
                t.data_type == first.data_type
                    && t.dims.len() == first.dims.len()
                    && (0..t.dims.len()).all(|i| i == axis || t.dims[i] == first.dims[i])
            };
            if !all.iter().all(same) {
                return None;
            }
            let mut dims = first.dims.clone();
            dims[axis] = all.iter().try_fold(0i64, |n, t| n.checked_add(t.dims[axis]))?;
            let wide = width(first.data_type)?;
            let count = budget.take(&dims, wide)?;
            let outer: i64 = dims[..axis].iter().product();
            if outer == 0 {
                return None;
            }
            let mut raw = Vec::with_capacity(count * wide);
            for o in 0..outer as usize {
                for t in &all {
                    let piece = t.raw_data.len() / outer as usize;
                    raw.extend_from_slice(&t.raw_data[o * piece..(o + 1) * piece]);
                }
            }
            one(raw_tensor(name.clone(), dims, first.data_type, raw))
        }
        "Gather" => {
            let (x, index) = (at(0)?, at(1)?);
            let axis = wrap(attr_int(node, "axis", 0), x.dims.len())?;
            let n = x.dims[axis];
            let places: Vec<usize> = whole(index)?.into_iter().map(|i| wrap(i, n as usize)).collect::<Option<_>>()?;
            let dims: Vec<i64> = x.dims[..axis].iter().chain(&index.dims).chain(&x.dims[axis + 1..]).copied().collect();
            let wide = width(x.data_type)?;
            let count = budget.take(&dims, wide)?;
            let (outer, inner) =
                (x.dims[..axis].iter().product::<i64>() as usize, x.dims[axis + 1..].iter().product::<i64>() as usize * wide);
            let mut raw = Vec::with_capacity(count * wide);
            for o in 0..outer {
                for &p in &places {
                    let from = (o * n as usize + p) * inner;
                    raw.extend_from_slice(&x.raw_data[from..from + inner]);
                }
            }
            one(raw_tensor(name.clone(), dims, x.data_type, raw))
        }
        "Shape" => {
            let dims = &at(0)?.dims;
            let n = dims.len() as i64;
            let clip = |v: i64| (if v < 0 { v.saturating_add(n) } else { v }).clamp(0, n) as usize;
            let (start, end) = (clip(attr_int(node, "start", 0)), clip(attr(node, "end").map_or(n, |a| a.i)));
            let part = &dims[start..end.max(start)];
            one(i64_tensor(name, &[part.len()], part))
        }
        "Size" => one(i64_tensor(name, &[], &[at(0)?.dims.iter().product()])),
        "ConstantOfShape" => {
            let dims = whole_at(0)?;
            let mut value = attr(node, "value").and_then(|a| a.t.clone()).unwrap_or_else(|| f32_tensor("", &[1], &[0.0]));
            to_raw(&mut value);
            let wide = width(value.data_type).filter(|w| *w == value.raw_data.len())?;
            let count = budget.take(&dims, wide)?;
            one(raw_tensor(name.clone(), dims, value.data_type, value.raw_data.repeat(count)))
        }
        "Range" => {
            let [Some(start), Some(limit), Some(delta)] = [0, 1, 2].map(|i| whole_at(i).and_then(|v| v.first().copied())) else {
                return None;
            };
            let count = if delta == 0 { return None } else { slice_count(start, limit, delta)? };
            budget.take(&[count], 8)?;
            let values = (0..count).map(|i| start + i * delta).collect();
            one(encode(name, &[count], at(0)?.data_type, &Numbers::Whole(values))?)
        }
        "Cast" => cast(name, at(0)?, attr_int(node, "to", 0) as i32, budget),
        "QuantizeLinear" => quantize(node, at(0)?, at(1)?, at(2), budget),
        "DequantizeLinear" => dequantize(node, at(0)?, at(1)?, at(2), budget),
        "Where" => {
            let (c, a, b) = (at(0)?, at(1)?, at(2)?);
            let dims = broadcast(&broadcast(&a.dims, &b.dims)?, &c.dims)?;
            budget.take(&dims, 8)?;
            let (pick, sa, sb, sc) =
                (whole(c)?, broadcast_strides(&a.dims, &dims), broadcast_strides(&b.dims, &dims), broadcast_strides(&c.dims, &dims));
            let places = || indices(&dims, &sc).zip(indices(&dims, &sa)).zip(indices(&dims, &sb));
            let values = match (numbers(a)?, numbers(b)?) {
                (Numbers::Real(a), Numbers::Real(b)) => {
                    Numbers::Real(places().map(|((c, i), j)| if pick[c] != 0 { a[i] } else { b[j] }).collect())
                }
                (Numbers::Whole(a), Numbers::Whole(b)) => {
                    Numbers::Whole(places().map(|((c, i), j)| if pick[c] != 0 { a[i] } else { b[j] }).collect())
                }
                _ => return None,
            };
            one(encode(name, &dims, a.data_type, &values)?)
        }
        "Clip" => {
            let x = at(0)?;
            budget.take(&x.dims, 8)?;
            let bound = |i: usize| at(i).map(numbers);
            let values = match (numbers(x)?, bound(1), bound(2)) {
                (Numbers::Real(x), lo, hi) => {
                    let real = |b: Option<Option<Numbers>>, otherwise: f32| match b {
                        None => Some(otherwise),
                        Some(Some(Numbers::Real(v))) => v.first().copied(),
                        _ => None,
                    };
                    let (lo, hi) = (real(lo, f32::NEG_INFINITY)?, real(hi, f32::INFINITY)?);
                    Numbers::Real(x.into_iter().map(|v| v.max(lo).min(hi)).collect())
                }
                (Numbers::Whole(x), lo, hi) => {
                    let int = |b: Option<Option<Numbers>>, otherwise: i64| match b {
                        None => Some(otherwise),
                        Some(Some(Numbers::Whole(v))) => v.first().copied(),
                        _ => None,
                    };
                    let (lo, hi) = (int(lo, i64::MIN)?, int(hi, i64::MAX)?);
                    Numbers::Whole(x.into_iter().map(|v| v.max(lo).min(hi)).collect())
                }
            };
            one(encode(name, &x.dims, x.data_type, &values)?)
        }
        "ReduceProd" | "ReduceSum" | "ReduceMax" | "ReduceMin" => {
            let x = at(0)?;
            let values = whole(x)?;
            // Of a vector, as the arithmetic of sizes has it.
            if x.dims.len() != 1 || values.is_empty() || at(1).is_some_and(|_| !matches!(whole_at(1).as_deref(), Some([0 | -1]))) {
                return None;
            }
            let fold = |f: fn(i64, i64) -> Option<i64>| values[1..].iter().try_fold(values[0], |a, &b| f(a, b));
            let result = match node.op_type.as_str() {
                "ReduceProd" => fold(i64::checked_mul),
                "ReduceSum" => fold(i64::checked_add),
                "ReduceMax" => fold(|a, b| Some(a.max(b))),
                _ => fold(|a, b| Some(a.min(b))),
            }?;
            let dims: &[i64] = if attr_int(node, "keepdims", 1) != 0 { &[1] } else { &[] };
            one(encode(name, dims, x.data_type, &Numbers::Whole(vec![result]))?)
        }
        op @ ("Add" | "Sub" | "Mul" | "Div" | "Pow" | "Mod" | "Min" | "Max" | "Equal" | "Less" | "Greater" | "LessOrEqual"
        | "GreaterOrEqual" | "And" | "Or") => {
            if inputs.len() != 2 || (op == "Mod" && attr_int(node, "fmod", 0) != 0) {
                return None;
            }
            binary(op, name, at(0)?, at(1)?, budget)
        }
        op => unary(op, name, at(0)?, budget),
    }
}

fn reshaped(name: &str, x: &TensorProto, dims: Vec<i64>, budget: &mut Budget) -> Option<Vec<TensorProto>> {
    let count = budget.take(&dims, width(x.data_type)?)?;
    (count as i64 == x.dims.iter().product::<i64>()).then(|| vec![raw_tensor(name.into(), dims, x.data_type, x.raw_data.clone())])
}

/// What ONNX `Reshape` makes of `shape`.
fn reshape_dims(x: &TensorProto, shape: &[i64], keep_zero: bool) -> Option<Vec<i64>> {
    let mut dims = shape.to_vec();
    for (i, d) in dims.iter_mut().enumerate().filter(|(_, d)| **d == 0 && !keep_zero) {
        *d = *x.dims.get(i)?;
    }
    if let Some(at) = dims.iter().position(|&d| d == -1) {
        let rest = dims.iter().enumerate().filter(|(i, _)| *i != at).try_fold(1i64, |n, (_, &d)| n.checked_mul(d))?;
        let total: i64 = x.dims.iter().product();
        dims[at] = total.checked_rem(rest).filter(|r| *r == 0).map(|_| total / rest)?;
    }
    Some(dims)
}

fn strides(dims: &[i64]) -> Vec<i64> {
    let mut strides = vec![1; dims.len()];
    for i in (1..dims.len()).rev() {
        strides[i - 1] = strides[i] * dims[i].max(1);
    }
    strides
}

fn broadcast(a: &[i64], b: &[i64]) -> Option<Vec<i64>> {
    let rank = a.len().max(b.len());
    let at = |d: &[i64], i: usize| (i + d.len()).checked_sub(rank).map_or(1, |i| d[i]);
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (x, y) if x == y => Some(x),
            (1, y) => Some(y),
            (x, 1) => Some(x),
            _ => None,
        })
        .collect()
}

/// Steps through a tensor of `dims` as if it had the dimensions `to`.
fn broadcast_strides(dims: &[i64], to: &[i64]) -> Vec<i64> {
    let own = strides(dims);
    (0..to.len()).map(|i| (i + dims.len()).checked_sub(to.len()).map_or(0, |i| if dims[i] == 1 { 0 } else { own[i] })).collect()
}

/// The positions of a strided view, in row-major order of `dims`.
fn indices<'a>(dims: &'a [i64], steps: &'a [i64]) -> impl Iterator<Item = usize> + 'a {
    let count = dims.iter().product::<i64>().max(0);
    let mut place = vec![0i64; dims.len()];
    let mut at = 0i64;
    (0..count).map(move |_| {
        let now = at;
        for i in (0..dims.len()).rev() {
            place[i] += 1;
            at += steps[i];
            if place[i] < dims[i] {
                break;
            }
            at -= steps[i] * dims[i];
            place[i] = 0;
        }
        now as usize
    })
}

/// A strided view of a tensor, copied.
fn picked(name: &str, x: &TensorProto, dims: &[i64], from: i64, steps: &[i64], budget: &mut Budget) -> Option<TensorProto> {
    let wide = width(x.data_type)?;
    let count = budget.take(dims, wide)?;
    let mut raw = Vec::with_capacity(count * wide);
    for i in indices(dims, steps) {
        let i = usize::try_from(from + i as i64).ok()? * wide;
        raw.extend_from_slice(x.raw_data.get(i..i + wide)?);
    }
    Some(raw_tensor(name.into(), dims.to_vec(), x.data_type, raw))
}

fn slice_count(start: i64, limit: i64, delta: i64) -> Option<i64> {
    let span = limit.checked_sub(start)?;
    Some((span / delta + i64::from(span % delta != 0)).max(0)).filter(|_| (span > 0) == (delta > 0)).or(Some(0))
}

/// ONNX `Cast`: towards zero to integers, which wrap; a number that is not 0 is true.
fn cast(name: &str, x: &TensorProto, to: i32, budget: &mut Budget) -> Option<Vec<TensorProto>> {
    budget.take(&x.dims, width(to)?)?;
    let values = match (numbers(x)?, to) {
        (v @ Numbers::Real(_), FLOAT) => v,
        (Numbers::Whole(v), FLOAT) => Numbers::Real(v.into_iter().map(|v| v as f32).collect()),
        (Numbers::Real(v), BOOL) => Numbers::Whole(v.into_iter().map(|v| i64::from(v != 0.0)).collect()),
        (Numbers::Whole(v), BOOL) => Numbers::Whole(v.into_iter().map(|v| i64::from(v != 0)).collect()),
        (Numbers::Real(v), _) => Numbers::Whole(v.into_iter().map(|v| v as i64).collect()),
        (v, _) => v,
    };
    Some(vec![encode(name, &x.dims, to, &values)?])
}

/// For each element, the index of its scale: one at all, or one for each index along `axis`.
fn scale_index(node: &NodeProto, x: &TensorProto, scales: usize) -> Option<impl Fn(usize) -> usize + use<>> {
    let rank = x.dims.len() as i64;
    let axis = attr_int(node, "axis", 1);
    let axis = if axis < 0 { axis + rank } else { axis };
    let (n, inner) = if scales == 1 {
        (1, 1)
    } else {
        let axis = usize::try_from(axis).ok().filter(|&a| a < x.dims.len())?;
        (x.dims[axis] as usize, x.dims[axis + 1..].iter().product::<i64>() as usize)
    };
    (n == scales && inner > 0 && attr_int(node, "block_size", 0) == 0).then_some(move |i: usize| i / inner % n)
}

/// ONNX `QuantizeLinear`: round half to even of `x / scale`, plus the zero point, saturated.
fn quantize(
    node: &NodeProto,
    x: &TensorProto,
    scale: &TensorProto,
    zero: Option<&TensorProto>,
    budget: &mut Budget,
) -> Option<Vec<TensorProto>> {
    let (Numbers::Real(v), Numbers::Real(s)) = (numbers(x)?, numbers(scale)?) else { return None };
    let to = zero.map_or_else(|| Some(attr_int(node, "output_dtype", 0) as i32).filter(|t| *t != 0).unwrap_or(UINT8), |z| z.data_type);
    let (lo, hi) = range(to)?;
    let z = zero.map_or(Some(vec![0; s.len()]), whole)?;
    if z.len() != s.len() || s.iter().any(|s| !(s.is_normal() && *s > 0.0)) {
        return None;
    }
    budget.take(&x.dims, width(to)?)?;
    let at = scale_index(node, x, s.len())?;
    let values =
        v.iter().enumerate().map(|(i, v)| ((v / s[at(i)]).round_ties_even() as i64).saturating_add(z[at(i)]).clamp(lo, hi)).collect();
    Some(vec![encode(&node.output[0], &x.dims, to, &Numbers::Whole(values))?])
}

/// ONNX `DequantizeLinear`.
fn dequantize(
    node: &NodeProto,
    x: &TensorProto,
    scale: &TensorProto,
    zero: Option<&TensorProto>,
    budget: &mut Budget,
) -> Option<Vec<TensorProto>> {
    let (Numbers::Whole(v), Numbers::Real(s)) = (numbers(x)?, numbers(scale)?) else { return None };
    let z = zero.map_or(Some(vec![0; s.len()]), whole)?;
    if z.len() != s.len() {
        return None;
    }
    budget.take(&x.dims, 4)?;
    let at = scale_index(node, x, s.len())?;
    let values = v.iter().enumerate().map(|(i, v)| (v - z[at(i)]) as f32 * s[at(i)]).collect();
    Some(vec![encode(&node.output[0], &x.dims, FLOAT, &Numbers::Real(values))?])
}

fn binary(op: &str, name: &str, a: &TensorProto, b: &TensorProto, budget: &mut Budget) -> Option<Vec<TensorProto>> {
    let dims = broadcast(&a.dims, &b.dims)?;
    budget.take(&dims, 8)?;
    if a.data_type != b.data_type && op != "Pow" {
        return None;
    }
    let (sa, sb) = (broadcast_strides(&a.dims, &dims), broadcast_strides(&b.dims, &dims));
    let places = || indices(&dims, &sa).zip(indices(&dims, &sb));
    let truth = |v: bool| Some(i64::from(v));
    let (values, to) = match (numbers(a)?, numbers(b)?) {
        (Numbers::Real(x), Numbers::Real(y)) => {
            let compare = |f: fn(f32, f32) -> bool| Numbers::Whole(places().map(|(i, j)| i64::from(f(x[i], y[j]))).collect());
            let compute = |f: fn(f32, f32) -> f32| Numbers::Real(places().map(|(i, j)| f(x[i], y[j])).collect());
            match op {
                "Add" => (compute(|a, b| a + b), FLOAT),
                "Sub" => (compute(|a, b| a - b), FLOAT),
                "Mul" => (compute(|a, b| a * b), FLOAT),
                "Div" => (compute(|a, b| a / b), FLOAT),
                "Pow" => (compute(f32::powf), FLOAT),
                "Min" => (compute(f32::min), FLOAT),
                "Max" => (compute(f32::max), FLOAT),
                "Equal" => (compare(|a, b| a == b), BOOL),
                "Less" => (compare(|a, b| a < b), BOOL),
                "Greater" => (compare(|a, b| a > b), BOOL),
                "LessOrEqual" => (compare(|a, b| a <= b), BOOL),
                "GreaterOrEqual" => (compare(|a, b| a >= b), BOOL),
                _ => return None,
            }
        }
        (Numbers::Whole(x), Numbers::Whole(y)) => {
            let compute =
                |f: &dyn Fn(i64, i64) -> Option<i64>| places().map(|(i, j)| f(x[i], y[j])).collect::<Option<_>>().map(Numbers::Whole);
            let same = a.data_type;
            match op {
                "Add" => (compute(&i64::checked_add)?, same),
                "Sub" => (compute(&i64::checked_sub)?, same),
                "Mul" => (compute(&i64::checked_mul)?, same),
                "Div" => (compute(&i64::checked_div)?, same),
                // The sign is the divisor's.
                "Mod" => (compute(&|a, b| a.checked_rem(b).map(|r| if r != 0 && (r < 0) != (b < 0) { r + b } else { r }))?, same),
                "Pow" => (compute(&|a, b| a.checked_pow(u32::try_from(b).ok()?))?, same),
                "Min" => (compute(&|a, b| Some(a.min(b)))?, same),
                "Max" => (compute(&|a, b| Some(a.max(b)))?, same),
                "Equal" => (compute(&|a, b| truth(a == b))?, BOOL),
                "Less" => (compute(&|a, b| truth(a < b))?, BOOL),
                "Greater" => (compute(&|a, b| truth(a > b))?, BOOL),
                "LessOrEqual" => (compute(&|a, b| truth(a <= b))?, BOOL),
                "GreaterOrEqual" => (compute(&|a, b| truth(a >= b))?, BOOL),
                "And" => (compute(&|a, b| truth(a != 0 && b != 0))?, BOOL),
                "Or" => (compute(&|a, b| truth(a != 0 || b != 0))?, BOOL),
                _ => return None,
            }
        }
        _ => return None,
    };
    Some(vec![encode(name, &dims, to, &finite(values)?)?])
}

/// Infinities and NaN are no constants of a model.
fn finite(values: Numbers) -> Option<Numbers> {
    match &values {
        Numbers::Real(v) if v.iter().any(|v| !v.is_finite()) => None,
        _ => Some(values),
    }
}

fn unary(op: &str, name: &str, x: &TensorProto, budget: &mut Budget) -> Option<Vec<TensorProto>> {
    let real: Option<fn(f32) -> f32> = match op {
        "Neg" => Some(|v| -v),
        "Abs" => Some(f32::abs),
        "Sqrt" => Some(f32::sqrt),
        "Reciprocal" => Some(|v| 1.0 / v),
        "Relu" => Some(|v| v.max(0.0)),
        "Exp" => Some(f32::exp),
        "Log" => Some(f32::ln),
        "Floor" => Some(f32::floor),
        "Ceil" => Some(f32::ceil),
        "Round" => Some(f32::round_ties_even),
        "Sigmoid" => Some(|v| (1.0 / (1.0 + f64::from(-v).exp())) as f32),
        "Tanh" => Some(f32::tanh),
        _ => None,
    };
    let int: Option<fn(i64) -> i64> = match op {
        "Neg" => Some(i64::wrapping_neg),
        "Abs" => Some(i64::wrapping_abs),
        "Relu" => Some(|v| v.max(0)),
        "Not" => Some(|v| i64::from(v == 0)),
        _ => None,
    };
    if real.is_none() && int.is_none() {
        return None;
    }
    budget.take(&x.dims, 8)?;
    let values = match numbers(x)? {
        Numbers::Real(v) => Numbers::Real(v.into_iter().map(real?).collect()),
        Numbers::Whole(v) => Numbers::Whole(v.into_iter().map(int?).collect()),
    };
    Some(vec![encode(name, &x.dims, x.data_type, &finite(values)?)?])
}
