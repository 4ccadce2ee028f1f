//! Weights as rows: what shares a scale stands together, however the operator stores it.

use crate::onnx::*;

/// How the weights of a Conv, ConvTranspose or Gemm lie, and which of them share a scale.
#[derive(Debug, Clone, Copy)]
pub struct Rows {
    /// The axis along which scales differ.
    pub axis: usize,
    /// Scales: one for each output channel, or for each output of a group where ConvTranspose has groups, which ONNX gives no other axis.
    pub rows: usize,
    /// Output channels.
    pub outputs: usize,
    before: usize,
    after: usize,
    per_group: usize,
    groups: usize,
}

impl Rows {
    /// Of `node` with weights of dimensions `dims`.
    pub fn of(node: &NodeProto, dims: &[usize]) -> Self {
        let groups = usize::try_from(attr_int(node, "group", 1)).unwrap_or(1).max(1);
        let transposed = is_op(node, "ConvTranspose");
        let at = |i: usize| dims.get(i).copied().unwrap_or(0);
        let columns = is_op(node, "Gemm") && attr_int(node, "transB", 0) == 0;
        // [inputs, outputs of a group, …]; where each group has one input, that is the output's as well.
        let axis = usize::from(columns || transposed && (groups == 1 || at(0) != groups));
        let outputs = if transposed { groups * at(1) } else { at(axis) };
        let product = |d: &[usize]| d.iter().product();
        let (before, after) = (product(&dims[..axis.min(dims.len())]), product(&dims[(axis + 1).min(dims.len())..]));
        let per_group = if transposed || columns { at(1) } else { 1 };
        Rows { axis, rows: at(axis), outputs, before, after, per_group, groups: if transposed { groups } else { 1 } }
    }

    /// Stored values, row by row.
    pub fn gather<T: Copy>(&self, stored: &[T]) -> Vec<T> {
        let of_row = |r: usize| (0..self.before).flat_map(move |b| &stored[(b * self.rows + r) * self.after..][..self.after]);
        (0..self.rows).flat_map(of_row).copied().collect()
    }

    /// Values by rows, as they are stored.
    pub fn scatter<T: Copy>(&self, rows: &[T]) -> Vec<T> {
        let of_part = |b: usize| (0..self.rows).flat_map(move |r| &rows[(r * self.before + b) * self.after..][..self.after]);
        (0..self.before).flat_map(of_part).copied().collect()
    }

    /// The row that an output channel's scale belongs to.
    pub fn row(&self, output: usize) -> usize {
        match (self.axis, self.per_group) {
            (1, n) => output % n,
            (_, n) => output / n.max(1),
        }
    }

    /// The output channel that a stored weight adds to.
    pub fn output(&self, at: usize) -> usize {
        if self.axis == 0 && self.groups == 1 {
            return at / self.after.max(1);
        }
        // [inputs, outputs of a group, taps]
        let taps = if self.axis == 1 { self.after } else { self.after / self.per_group.max(1) }.max(1);
        let inputs = if self.axis == 1 { self.before } else { self.rows };
        let (input, of_group) = (at / taps / self.per_group.max(1), at / taps % self.per_group.max(1));
        input / (inputs / self.groups).max(1) * self.per_group + of_group
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(op: &str, groups: i64) -> NodeProto {
        make_node(op, &["x", "w"], "y", vec![int_attribute("group", groups)])
    }

    #[test]
    fn each_weight_has_its_output_and_row() {
        // Operator, groups, dimensions, axis, rows, outputs.
        for (op, groups, dims, axis, rows, outputs) in [
            ("Conv", 2, [6, 2, 1, 3], 0, 6, 6),
            ("Gemm", 1, [4, 3, 1, 1], 1, 3, 3),
            ("ConvTranspose", 1, [4, 3, 2, 1], 1, 3, 3),
            ("ConvTranspose", 1, [1, 3, 2, 2], 1, 3, 3),
            ("ConvTranspose", 2, [4, 3, 2, 2], 1, 3, 6),
            ("ConvTranspose", 4, [4, 3, 1, 2], 0, 4, 12),
            ("ConvTranspose", 5, [5, 1, 2, 2], 0, 5, 5),
        ] {
            let dims: [usize; 4] = dims;
            let r = Rows::of(&node(op, groups), &dims);
            let total: usize = dims.iter().product();
            let stored: Vec<usize> = (0..total).collect();
            assert_eq!((r.axis, r.rows, r.outputs), (axis, rows, outputs), "{op} {groups} {dims:?}");
            assert_eq!(r.scatter(&r.gather(&stored)), stored);
            for (i, &at) in r.gather(&stored).iter().enumerate() {
                let index = [at / (dims[1] * dims[2] * dims[3]), at / (dims[2] * dims[3]) % dims[1]];
                let output = match op {
                    "Conv" => index[0],
                    _ => index[0] / (dims[0] / groups as usize) * dims[1] + index[1],
                };
                assert_eq!(r.output(at), output, "{op} {groups} {dims:?}: {at}");
                assert_eq!(r.row(output), i / (total / r.rows), "{op} {groups} {dims:?}: {at}");
            }
        }
    }
}
