//! Softmax along an axis that is not the last one, as detectors have over the bins of their boxes. tract's own walks such an axis value by
//! value: more than half of a YOLOv8n's time.

use tract_onnx::tract_core::ops::nn::{Softmax, SoftmaxKind};
use tract_onnx::tract_hir::internal::*;

/// Neighbours along the inner axes that are computed together: their maxima and sums stay in the first-level cache.
const STRIP: usize = 256;

/// Softmax of floats along one axis: `exp(x − max) / Σ exp(x − max)`, summed in order.
#[derive(Debug, Clone, PartialEq, Eq)]
struct StridedSoftmax {
    axis: usize,
}

/// Gives every softmax along an inner axis of floats this form.
pub fn replace(model: &mut TypedModel) {
    for node in &mut model.nodes {
        let Some(Softmax { axes, quant_output_dt: None, kind: SoftmaxKind::Softmax }) = node.op_as::<Softmax>() else { continue };
        let Some(fact) = node.outputs.first().map(|o| &o.fact) else { continue };
        if let [axis] = axes[..]
            && fact.datum_type == f32::datum_type()
            && axis + 1 < fact.rank()
        {
            node.op = Box::new(StridedSoftmax { axis });
        }
    }
}

impl Op for StridedSoftmax {
    fn name(&self) -> StaticName {
        "StridedSoftmax".into()
    }
    op_as_typed_op!();
}

impl EvalOp for StridedSoftmax {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let mut tensor = args_1!(inputs).into_tensor();
        ensure!(self.axis < tensor.rank(), "softmax along axis {} of a tensor of {} axes", self.axis, tensor.rank());
        let (length, inner) = (tensor.shape()[self.axis], tensor.shape()[self.axis + 1..].iter().product());
        softmax(tensor.try_as_plain_ram_mut()?.as_slice_mut::<f32>()?, length, inner);
        Ok(tvec!(tensor.into_tvalue()))
    }
}

impl TypedOp for StridedSoftmax {
    as_op!();

    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec!(inputs[0].without_value()))
    }
}

/// In place, along an axis of `length` values that lie `inner` values apart.
fn softmax(data: &mut [f32], length: usize, inner: usize) {
    if length == 0 || inner == 0 {
        return;
    }
    let (mut most, mut sums) = ([0.0f32; STRIP], [0.0f32; STRIP]);
    for block in data.chunks_exact_mut(length * inner) {
        for first in (0..inner).step_by(STRIP) {
            let n = STRIP.min(inner - first);
            let (most, sums) = (&mut most[..n], &mut sums[..n]);
            most.fill(f32::NEG_INFINITY);
            sums.fill(0.0);
            for row in block.chunks_exact(inner) {
                most.iter_mut().zip(&row[first..]).for_each(|(m, &x)| *m = m.max(x));
            }
            for row in block.chunks_exact_mut(inner) {
                for ((x, m), sum) in row[first..].iter_mut().zip(&*most).zip(&mut *sums) {
                    *x = (*x - m).exp();
                    *sum += *x;
                }
            }
            for row in block.chunks_exact_mut(inner) {
                row[first..].iter_mut().zip(&*sums).for_each(|(x, s)| *x /= s);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// tract's own operator is the other opinion.
    #[test]
    fn equals_tracts_softmax() -> TractResult<()> {
        for (shape, axis) in [(vec![1, 4, 16, 70], 2), (vec![2, 3, 5], 1), (vec![3, 2, 300], 0), (vec![1, 1, 1], 0)] {
            let mut seed = 1u32;
            let values: Vec<f32> = (0..shape.iter().product::<usize>())
                .map(|_| {
                    seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (seed >> 8) as f32 / 65_536.0 - 128.0
                })
                .collect();
            let mut model = TypedModel::default();
            let source = model.add_source("x", f32::fact(&shape))?;
            let softmax = Softmax { axes: tvec![axis], ..Softmax::default() };
            let outputs = model.wire_node("softmax", softmax, &[source])?;
            model.select_output_outlets(&outputs)?;
            let theirs = model.clone();
            replace(&mut model);
            assert_eq!(model.nodes[1].op.name(), "StridedSoftmax");
            let input = Tensor::from_shape(&shape, &values)?.into_tvalue();
            let [a, b] = [model, theirs].map(|m| m.into_runnable().and_then(|m| m.run(tvec![input.clone()])));
            a?[0].close_enough(&b?[0], Approximation::Close)?;
        }
        Ok(())
    }
}
