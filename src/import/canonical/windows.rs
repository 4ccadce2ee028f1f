//! Paddings that depend on the size of the picture become numbers.

use crate::import::onnx::*;

fn pair(node: &NodeProto, name: &str, otherwise: i64) -> Option<[i64; 2]> {
    match *attr_ints(node, name) {
        [] => Some([otherwise; 2]),
        [a, b] if (0..=4096).contains(&a) && (0..=4096).contains(&b) => Some([a, b]),
        _ => None,
    }
}

fn set(node: &mut NodeProto, name: &str, values: &[i64]) {
    node.attribute.retain(|a| a.name != name);
    node.attribute.push(AttributeProto { name: name.into(), r#type: 7, ints: values.to_vec(), ..Default::default() });
}

/// Writes `auto_pad` of a Conv, ConvTranspose, MaxPool or AveragePool, and `output_shape` of a ConvTranspose, as `pads` and `output_padding` for
/// pictures of this height and width. `None`: there is nothing to write, or no number of pixels that does it.
pub fn explicit(node: &mut NodeProto, kernel: [i64; 2], size: [i64; 2]) -> Option<()> {
    let mode = attr(node, "auto_pad").map(|a| a.s.clone()).unwrap_or_default();
    let transposed = is_op(node, "ConvTranspose");
    let same = matches!(&mode[..], b"SAME_UPPER" | b"SAME_LOWER");
    let asked = if transposed { attr_ints(node, "output_shape").to_vec() } else { vec![] };
    let stated = [kernel, size].as_flattened().iter().all(|n| (1..=1 << 20).contains(n));
    if !stated || !(same || &mode[..] == b"VALID" || !asked.is_empty()) {
        return None;
    }
    let (strides, dilations) = (pair(node, "strides", 1)?, pair(node, "dilations", 1)?);
    let mut extra = pair(node, "output_padding", 0)?;
    if strides.contains(&0) || dilations.contains(&0) {
        return None;
    }
    let mut pads = [0; 4];
    for i in 0..2 {
        let reach = (kernel[i] - 1) * dilations[i] + 1;
        let total = if transposed {
            let full = (size[i] - 1) * strides[i] + reach + extra[i];
            let out = match asked[..] {
                // Where the kernel is smaller than the stride, ONNX Runtime ends with the last window.
                [] if same => full.min(size[i] * strides[i]),
                [] => full,
                [h, w] | [_, _, h, w] => [h, w][i],
                _ => return None,
            };
            // ONNX Runtime fills up what is asked for beyond the last window.
            extra[i] += (out - full).max(0);
            (full - out).max(0)
        } else if same {
            let out = (size[i] + strides[i] - 1) / strides[i];
            ((out - 1) * strides[i] + reach - size[i]).max(0)
        } else {
            0
        };
        // The odd pixel lies behind with SAME_UPPER, in front otherwise.
        let (small, large) = (total / 2, total - total / 2);
        (pads[i], pads[i + 2]) = if &mode[..] == b"SAME_UPPER" { (small, large) } else { (large, small) };
    }
    node.attribute.retain(|a| !["auto_pad", "output_shape"].contains(&a.name.as_str()));
    set(node, "pads", &pads);
    if transposed && extra != [0, 0] {
        set(node, "output_padding", &extra);
    }
    Some(())
}
