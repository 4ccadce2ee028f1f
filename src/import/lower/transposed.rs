//! Transposed convolutions: a convolution with one output for each phase of the stride, then DepthToSpace.
//!
//! The result before it is cropped has at Y the sum of w[k]·x[i] over all i·s + k·d = Y (ONNX `ConvTranspose`). With Y = q·s + r these are the
//! taps k·d = r + s·j at i = q − j, where j = 0 … J − 1 and J = ⌈((K − 1)·d + 1) / s⌉. So each phase r is a convolution with stride 1 whose J taps
//! are in reverse order. A tap that the kernel does not have is zero. Sizes of the picture are not needed: what is cropped at the end does not
//! depend on them.

use super::operators::groups_of;
use super::quantization::int_data;
use super::*;

/// Most weights of the convolution: a stride far larger than its kernel has a phase of zeros for each of its pixels.
const MAX_WEIGHTS: usize = 1 << 28;

/// One side of a transposed convolution.
pub(super) struct Side {
    kernel: usize,
    stride: usize,
    dilation: usize,
    /// Taps of each phase.
    taps: usize,
    /// Padding of the convolution.
    pad: [usize; 2],
    /// Pixels that are cut off the blocks.
    crop: [usize; 2],
}

impl Side {
    fn new([kernel, stride, dilation]: [usize; 3], pads: [usize; 2], extra: usize) -> Self {
        let reach = (kernel - 1) * dilation + 1;
        let taps = reach.div_ceil(stride);
        // Whole blocks in front are not computed.
        let blocks = (pads[0] / stride).min(taps - 1);
        // Pixels wanted from the last input pixel's first one on; none or less where the padding eats them.
        let end = (reach + extra) as i64 - pads[1] as i64;
        let after = (end - 1).max(0) as usize / stride;
        let behind = (((after + 1) * stride) as i64 - end) as usize;
        Side { kernel, stride, dilation, taps, pad: [taps - 1 - blocks, after], crop: [pads[0] - blocks * stride, behind] }
    }

    /// The kernel's tap that tap `t` of `phase` is, if the kernel has it.
    fn tap(&self, phase: usize, t: usize) -> Option<usize> {
        let at = phase + self.stride * (self.taps - 1 - t);
        (at.is_multiple_of(self.dilation) && at / self.dilation < self.kernel).then_some(at / self.dilation)
    }
}

/// Height and width from a node's attributes.
pub(super) fn sides(node: &NodeProto, kernel: [usize; 2]) -> Match<[Side; 2]> {
    let numbers = |name: &str, count: usize, otherwise: usize, least: i64| -> Match<Vec<usize>> {
        match attr_ints(node, name) {
            [] => Ok(vec![otherwise; count]),
            v if v.len() == count && v.iter().all(|n| (least..=4096).contains(n)) => Ok(v.iter().map(|&n| n as usize).collect()),
            other => Err(format!("{name} {other:?} is out of range")),
        }
    };
    if !attr_ints(node, "kernel_shape").is_empty() && numbers("kernel_shape", 2, 0, 1)? != kernel {
        return Err("kernel_shape does not match the weights".into());
    }
    if !attr_ints(node, "output_shape").is_empty() {
        return Err("output_shape is set, and the size of its input is open".into());
    }
    let (strides, dilations, extra) = (numbers("strides", 2, 1, 1)?, numbers("dilations", 2, 1, 1)?, numbers("output_padding", 2, 0, 0)?);
    let mode = attr(node, "auto_pad").map_or(&b"NOTSET"[..], |a| &a.s);
    let pads = match mode {
        b"NOTSET" | b"" => numbers("pads", 4, 0, 0)?,
        b"VALID" => vec![0; 4],
        other => return Err(format!("auto_pad {} of a picture whose size is open", String::from_utf8_lossy(other))),
    };
    let side = |i: usize| Side::new([kernel[i], strides[i], dilations[i]], [pads[i], pads[i + 2]], extra[i]);
    Ok([side(0), side(1)])
}

impl<'a> Lowering<'a> {
    pub(super) fn conv_transpose(&self, node: &NodeProto) -> Match<Pending> {
        let x = self.picture(node, 0)?;
        let Some(Value::DequantizedConstant(w)) = self.value(node, 1) else {
            return Err("its weights are not a quantized constant".into());
        };
        let dims = tensor_dims(w.tensor).map_err(|e| e.to_string())?;
        let (dtype, values) = int_data(w.tensor).map_err(|e| e.to_string())?.ok_or("its weights are not integers")?;
        let [inputs, per_group, kh, kw] = dims[..] else { return Err(format!("its weights have shape {dims:?}")) };
        if values.is_empty() || !matches!(dtype, DataType::Int8 | DataType::Uint8) {
            return Err("its weights are empty, or not 8-bit".into());
        }
        let groups = groups_of(node, inputs)?;
        let out = groups.checked_mul(per_group).ok_or("its group attribute is wrong")?;
        // Which of the scales is an output's: one for all, one for each output of a group, or one for each group of one input.
        let of_scale: &dyn Fn(usize) -> usize = match (w.scale.len(), if w.axis < 0 { w.axis + 4 } else { w.axis }) {
            (1, _) => &|_| 0,
            (n, 1) if n == per_group => &|o| o % per_group,
            (n, 0) if n == inputs && inputs == groups => &|o| o / per_group,
            (_, axis) => return Err(format!("its weights are quantized along axis {axis}, not per output channel")),
        };
        if ![1, w.scale.len()].contains(&w.zero_point.len()) {
            return Err("its zero points do not match its weights".into());
        }
        let scale = (0..out).map(|o| w.scale[of_scale(o)]).collect();
        let mut plain = Weights { data: vec![], out, per_out: 0, scale, bias: vec![] };
        self.bias(node, 2, self.tensors[x].quant.scale, &mut plain)?;

        let [rows, columns] = sides(node, [kh, kw])?;
        let (phases, taps) = (rows.stride * columns.stride, rows.taps * columns.taps);
        let per_out = inputs / groups * taps;
        if [out, phases, per_out].iter().try_fold(1usize, |n, &d| n.checked_mul(d)).is_none_or(|n| n > MAX_WEIGHTS) {
            return Err("its stride is far larger than its kernel".into());
        }
        // In the order of DepthToSpace: group, phase, output of the group.
        let origin = |o: usize| (o / per_group / phases * per_group + o % per_group, o / per_group % phases);
        let distance = |o: usize, k: usize| {
            let (output, phase) = origin(o);
            let tap = rows.tap(phase / columns.stride, k % taps / columns.taps).zip(columns.tap(phase % columns.stride, k % columns.taps));
            let input = output / per_group * (inputs / groups) + k / taps;
            let zero = w.zero_point[if w.zero_point.len() == 1 { 0 } else { of_scale(output) }];
            tap.map_or(0, |(y, x)| values[((input * per_group + output % per_group) * kh + y) * kw + x] - zero)
        };
        let all = out * phases;
        let (data, _) = signed_bytes(all, per_out, distance)?;
        let weights = Weights {
            per_out: data.len() / all,
            data,
            out: all,
            scale: (0..all).map(|o| plain.scale[origin(o).0]).collect(),
            bias: (0..all).map(|o| plain.bias[origin(o).0]).collect(),
        };
        let pad = [rows.pad[0], columns.pad[0], rows.pad[1], columns.pad[1]];
        let window = Window { kernel: [rows.taps, columns.taps], stride: [1; 2], dilation: [1; 2], pad, ceil: false };
        let crop = [rows.crop[0], columns.crop[0], rows.crop[1], columns.crop[1]];
        let weights = Arc::new(weights);
        if phases == 1 && crop == [0; 4] {
            return Ok(self.pending(node, Base::Conv { x, weights, window, groups }));
        }
        let spread = DepthToSpace { block: [rows.stride, columns.stride], groups: Groups::Of(groups), crop };
        Ok(self.pending(node, Base::ConvTranspose { x, weights, window, groups, spread }))
    }
}
