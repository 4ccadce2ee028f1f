//! Operators that move values without changing them, and those that resize.

use super::*;

/// Axes of ONNX's [1, C, H, W] that may change, in the order of [`Slice::extents`] and [`Pad::amounts`].
const AXES: [i64; 3] = [1, 2, 3];

fn axis_of(axis: i64) -> Match<usize> {
    let axis = if axis < 0 { axis + 4 } else { axis };
    AXES.iter().position(|a| *a == axis).ok_or_else(|| format!("axis {axis} is none of channels, height and width"))
}

impl<'a> Lowering<'a> {
    fn moved(&self, node: &NodeProto, x: TensorId, op: impl Into<Op>) -> Pending {
        self.pending(node, Base::Move { x, op: op.into() })
    }

    /// A constant list of integers, if the input is there.
    fn integers(&self, node: &NodeProto, i: usize) -> Match<Option<Vec<i64>>> {
        if node.input.get(i).is_none_or(|s| s.is_empty()) {
            return Ok(None);
        }
        let t = self.constant(node, i).ok_or_else(|| format!("its input {i} is computed"))?;
        i64_data(t).map(Some).map_err(|e| e.to_string())
    }

    pub(super) fn slice(&self, node: &NodeProto) -> Match<Pending> {
        let x = self.picture(node, 0)?;
        let (Some(starts), Some(ends)) = (self.integers(node, 1)?, self.integers(node, 2)?) else {
            return Err("its starts or ends are missing".into());
        };
        let axes = self.integers(node, 3)?.unwrap_or_else(|| (0..starts.len() as i64).collect());
        let steps = self.integers(node, 4)?.unwrap_or_else(|| vec![1; starts.len()]);
        if [ends.len(), axes.len(), steps.len()] != [starts.len(); 3] {
            return Err("its starts, ends, axes and steps differ in number".into());
        }
        let mut extents = [Extent::ALL; 3];
        for (i, &axis) in axes.iter().enumerate() {
            extents[axis_of(axis)?] = Extent::Range { start: starts[i], end: ends[i], step: steps[i] };
        }
        Ok(self.moved(node, x, Slice { extents }))
    }

    /// Each output of a Split.
    pub(super) fn split(&self, node: &NodeProto) -> Match<Vec<Pending>> {
        let x = self.picture(node, 0)?;
        let axis = axis_of(attr_int(node, "axis", 0))?;
        let sizes = self.integers(node, 1)?;
        let count = node.output.len();
        if sizes.as_ref().is_some_and(|s| s.len() != count) {
            return Err("its sizes differ in number from its outputs".into());
        }
        let mut first = 0i64;
        let mut parts = Vec::with_capacity(count);
        for index in 0..count {
            let mut extents = [Extent::ALL; 3];
            extents[axis] = match &sizes {
                None => Extent::Part { index, count },
                Some(sizes) => {
                    let start = first;
                    first = first.checked_add(sizes[index]).ok_or("its sizes are out of range")?;
                    Extent::Range { start, end: first, step: 1 }
                }
            };
            let node_name = format!("{}/{index}", label(node));
            parts.push(Pending { node: node_name, ..self.moved(node, x, Slice { extents }) });
        }
        Ok(parts)
    }

    pub(super) fn pad(&self, node: &NodeProto) -> Match<Pending> {
        let x = self.picture(node, 0)?;
        let pads = self.integers(node, 1)?.ok_or("its amounts are missing")?;
        let axes = self.integers(node, 3)?.unwrap_or_else(|| (0..4).collect());
        if pads.len() != 2 * axes.len() {
            return Err("its amounts and axes differ in number".into());
        }
        let value = || match node.input.get(2).filter(|s| !s.is_empty()) {
            None => Ok(0.0),
            Some(_) => {
                let t = self.constant(node, 2).ok_or("its value is computed")?;
                f32_data(t).map_err(|e| e.to_string())?.first().copied().ok_or("its value is missing".to_string())
            }
        };
        let border = match attr(node, "mode").map_or(&b"constant"[..], |a| &a.s) {
            b"constant" => Border::Constant(value()?),
            b"reflect" => Border::Reflect,
            b"edge" => Border::Edge,
            b"wrap" => Border::Wrap,
            other => return Err(format!("its mode {} is unknown", String::from_utf8_lossy(other))),
        };
        let mut amounts = [[0; 2]; 3];
        for (i, &axis) in axes.iter().enumerate() {
            let both = [pads[i], pads[i + axes.len()]];
            if both != [0, 0] {
                amounts[axis_of(axis)?] = both;
            }
        }
        Ok(self.moved(node, x, Pad { amounts, border }))
    }

    pub(super) fn depth_to_space(&self, node: &NodeProto) -> Match<Pending> {
        let x = self.picture(node, 0)?;
        let block = block_size(node)?;
        let groups = match attr(node, "mode").map_or(&b"DCR"[..], |a| &a.s) {
            b"DCR" => Groups::Of(1),
            b"CRD" => Groups::EachChannel,
            _ => return Err("its mode is unknown".into()),
        };
        Ok(self.moved(node, x, DepthToSpace { block: [block; 2], groups, crop: [0; 4] }))
    }

    pub(super) fn space_to_depth(&self, node: &NodeProto) -> Match<Pending> {
        let x = self.picture(node, 0)?;
        Ok(self.moved(node, x, SpaceToDepth { block: block_size(node)? }))
    }

    pub(super) fn resize(&self, node: &NodeProto) -> Match<Pending> {
        let x = self.picture(node, 0)?;
        let to = match (self.integers(node, 3)?, self.constant(node, 2)) {
            (Some(sizes), _) => match sizes[..] {
                [1, _, h, w] if h > 0 && w > 0 => ResizeTo::Sizes([h as usize, w as usize]),
                _ => return Err(format!("its sizes {sizes:?} are not [1, C, H, W]")),
            },
            (None, Some(scales)) => match f32_data(scales).map_err(|e| e.to_string())?[..] {
                [1.0, 1.0, h, w] if h > 0.0 && w > 0.0 => ResizeTo::Scales([h, w]),
                ref other => return Err(format!("its scales {other:?} are not [1, 1, h, w]")),
            },
            (None, None) => return Err("its scales are computed".into()),
        };
        resize_of(node, to).map(|resized| match resized {
            Resized::Nearest(op) => self.moved(node, x, op),
            Resized::Linear(resize) => self.pending(node, Base::ResizeLinear { x, resize }),
        })
    }

    /// A Reshape or Transpose whose result may be a picture again after others.
    pub(super) fn rearrange(&self, node: &NodeProto) -> Option<Pending> {
        let view = match node.op_type.as_str() {
            "Reshape" if attr_int(node, "allowzero", 0) == 0 => View::Reshape(i64_data(self.constant(node, 1)?).ok()?),
            "Transpose" => View::Transpose(attr_ints(node, "perm").iter().map(|&a| usize::try_from(a).ok()).collect::<Option<_>>()?),
            // A vector, as a picture of one pixel.
            "Unsqueeze" => {
                let mut axes = i64_data(self.constant(node, 1)?).ok()?;
                axes.iter_mut().filter(|a| **a < 0).for_each(|a| *a += 4);
                axes.sort_unstable();
                if axes != [2, 3] {
                    return None;
                }
                View::Reshape(vec![0, 0, 1, 1])
            }
            _ => return None,
        };
        match self.value(node, 0)? {
            &Value::Real { tensor, flat } => {
                let flattened = (flat && !self.tensors[tensor].flat).then(|| View::Reshape(vec![1, -1]));
                Some(self.moved(node, tensor, Rearrange { views: flattened.into_iter().chain([view]).collect() }))
            }
            Value::Pending(p) if p.clamp == Clamp::default() && p.residual.is_none() => match &p.base {
                Base::Move { x, op: Op::Rearrange(before) } => {
                    let views = before.views.iter().cloned().chain([view]).collect();
                    Some(self.moved(node, *x, Rearrange { views }))
                }
                _ => None,
            },
            _ => None,
        }
    }
}

fn block_size(node: &NodeProto) -> Match<usize> {
    usize::try_from(attr_int(node, "blocksize", 0))
        .ok()
        .filter(|b| (1..=64).contains(b))
        .ok_or_else(|| "its blocksize is out of range".into())
}

/// What a Resize becomes.
enum Resized {
    Nearest(ResizeNearest),
    Linear(Resize),
}

/// Why attributes of a Resize have no int8 form, if they have none.
pub(super) fn resize_attributes(node: &NodeProto) -> Match<()> {
    resize_of(node, ResizeTo::Sizes([1, 1])).map(|_| ())
}

fn resize_of(node: &NodeProto, to: ResizeTo) -> Match<Resized> {
    let text = |name: &str, otherwise: &'static [u8]| attr(node, name).map_or(otherwise.to_vec(), |a| a.s.clone());
    if attr_int(node, "antialias", 0) != 0 || attr_int(node, "exclude_outside", 0) != 0 || attr(node, "axes").is_some() {
        return Err("antialias, exclude_outside or axes are set".into());
    }
    if text("keep_aspect_ratio_policy", b"stretch") != b"stretch" {
        return Err("it keeps the aspect ratio".into());
    }
    let coordinates = match &text("coordinate_transformation_mode", b"half_pixel")[..] {
        b"asymmetric" => Coordinates::Asymmetric,
        b"half_pixel" => Coordinates::HalfPixel,
        b"pytorch_half_pixel" => Coordinates::PytorchHalfPixel,
        b"align_corners" => Coordinates::AlignCorners,
        other => return Err(format!("coordinate_transformation_mode {} has no int8 form", String::from_utf8_lossy(other))),
    };
    let resize = Resize { to, coordinates };
    match &text("mode", b"nearest")[..] {
        b"linear" => Ok(Resized::Linear(resize)),
        b"nearest" => {
            let nearest = match &text("nearest_mode", b"round_prefer_floor")[..] {
                b"floor" => Nearest::Floor,
                b"ceil" => Nearest::Ceil,
                b"round_prefer_floor" => Nearest::RoundPreferFloor,
                b"round_prefer_ceil" => Nearest::RoundPreferCeil,
                other => return Err(format!("nearest_mode {} is unknown", String::from_utf8_lossy(other))),
            };
            Ok(Resized::Nearest(ResizeNearest { resize, nearest }))
        }
        other => Err(format!("mode {} has no int8 form", String::from_utf8_lossy(other))),
    }
}
