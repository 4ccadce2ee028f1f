//! Convolution: its definition, and the choice between the ways of computing it. All of them give the same bits.

pub(crate) mod depthwise;
pub(crate) mod direct;
pub(crate) mod pooled;
pub(crate) mod winograd;

use super::reference::{Inputs, Results, taps};
use super::{Operator, Planner, Site};
use crate::graph::{Clamp, Shape, TensorId, Weights, Window};
use crate::kernels::{Requant, ResidualParams};
use crate::program::Buffer;
use std::sync::Arc;

/// ONNX `Conv`, perhaps plus a residual, then a clamp, then one requantization:
/// `f32(Σ(x − zp)·w + bias)·(s_x · s_w[c] / s_y) + f32(r − zp_r)·(s_r / s_y)`. Its inputs: the activation, and the residual if there is one.
#[derive(Debug, Clone)]
pub struct Conv {
    /// Weights.
    pub weights: Arc<Weights>,
    /// Geometry.
    pub window: Window,
    /// Channel groups.
    pub groups: usize,
    /// A second input is added in real values before requantization.
    pub residual: bool,
    /// Fused activation.
    pub clamp: Clamp,
}

impl Operator for Conv {
    fn name(&self) -> &'static str {
        if self.residual { "Conv+Add" } else { "Conv" }
    }

    fn shape(&self, inputs: &[Shape]) -> Result<Shape, String> {
        let (x, weights, groups) = (&inputs[0], &self.weights, self.groups);
        let out = self.window.shape(x, weights.out)?;
        // One kernel for each output, or the two whose sum is meant.
        let kernel = x.channels() / groups * self.window.kernel[0] * self.window.kernel[1];
        let kernels = weights.per_out == kernel || weights.per_out == 2 * kernel;
        if !x.channels().is_multiple_of(groups) || !weights.out.is_multiple_of(groups) || !kernels {
            return Err(format!(
                "weights for {} inputs per output do not match {} input channels in {groups} groups",
                weights.per_out,
                x.channels()
            ));
        }
        match inputs.get(1) {
            Some(r) if self.residual && r.hwc != out.hwc => Err(format!("the residual has shape {:?}, not {:?}", r.onnx(), out.onnx())),
            _ => Ok(out),
        }
    }

    fn padding(&self) -> [usize; 4] {
        self.window.pad
    }

    fn plan(&self, site: &Site<'_>, p: &mut Planner<'_>) -> crate::Result<()> {
        let layer = Layer::new(self, site, p)?;
        if depthwise::fits(&layer) {
            return depthwise::plan(&layer, site, p);
        }
        match winograd::choose(&layer, p) {
            Some(kernel) => winograd::plan(&layer, kernel, site, p),
            None => direct::plan(&layer, site, p),
        }
    }

    fn reference(&self, inputs: &Inputs<'_>) -> Results {
        let (x, w, window, groups) = (inputs.values[0], &self.weights, &self.window, self.groups);
        let shape = window.shape(&x.shape, w.out).expect("a window that fits");
        let mut out = inputs.sink(self.clamp, shape);
        let (x_scale, y) = (inputs.quants[0].scale, out.quant.scale);
        let (channels, outputs) = (x.shape.channels() / groups, w.out / groups);
        let size = window.kernel[0] * window.kernel[1];
        for o in 0..w.out {
            let mult = x_scale * w.scale[o] / y;
            let exact_mult = f64::from(x_scale) * f64::from(w.scale[o]) / f64::from(y);
            for (oy, ox) in (0..shape.hwc[0]).flat_map(|y| (0..shape.hwc[1]).map(move |x| (y, x))) {
                let mut acc = i64::from(w.bias[o]);
                taps(window, x.shape.hw(), oy, ox, |tap, iy, ix| {
                    // Of both kernels, where there are two.
                    for c in 0..w.per_out / size {
                        let q = inputs.centred(0, x.at(o / outputs * channels + c % channels, iy, ix));
                        acc += q * i64::from(w.row(o)[c * size + tap]);
                    }
                });
                let (mut v, mut exact) = (acc as f32 * mult, acc as f64 * exact_mult);
                if self.residual {
                    let (r, (m, exact_m)) = (inputs.centred(1, inputs.values[1].at(o, oy, ox)), inputs.ratio(1, y));
                    v += r as f32 * m;
                    exact += r as f64 * exact_m;
                }
                out.push(v, exact);
            }
        }
        out.done()
    }
}

/// A convolution with the places and quantizations of its tensors: what all ways of computing it are planned from.
pub(crate) struct Layer<'a> {
    pub conv: &'a Conv,
    pub input: TensorId,
    pub out: TensorId,
    pub src: Buffer,
    pub dst: Buffer,
    pub residual: Option<(Buffer, ResidualParams)>,
    pub requant: Requant,
    /// Multiply-accumulates.
    pub macs: u64,
}

/// Bias and multiplier of output channels.
type PerChannel = (Vec<i32>, Vec<f32>);

impl<'a> Layer<'a> {
    fn new(conv: &'a Conv, site: &Site<'_>, p: &Planner<'_>) -> crate::Result<Self> {
        let (input, out) = (site.inputs[0], site.out()?);
        let dst = p.buffers[out];
        let residual = if conv.residual {
            let r = site.inputs[1];
            let params = ResidualParams { zero_point: p.buffers[r].zero_point, mult: p.quant(r).scale / p.quant(out).scale };
            site.check_multipliers(&[params.mult])?;
            Some((p.buffers[r], params))
        } else {
            None
        };
        let macs = (dst.shape[0] * dst.shape[1] * conv.weights.data.len()) as u64;
        Ok(Layer { conv, input, out, src: p.buffers[input], dst, residual, requant: p.requant(out, conv.clamp), macs })
    }

    /// Bias and multipliers of `count` channels from `first` on, in groups of `nr`, the last one padded.
    fn per_channel(&self, site: &Site<'_>, p: &Planner<'_>, nr: usize, first: usize, count: usize) -> crate::Result<PerChannel> {
        let weights = &*self.conv.weights;
        let (x, y) = (p.quant(self.input).scale, p.quant(self.out).scale);
        let channels = || (0..count.next_multiple_of(nr)).map(move |o| (o < count).then_some(first + o));
        let bias =
            channels().map(|o| o.map_or(Ok(0), |o| site.fold_bias(weights, o, self.src.zero_point))).collect::<crate::Result<_>>()?;
        // The order of operations is ONNX Runtime's, so that multipliers agree to the last bit.
        let mult: Vec<f32> = channels().map(|o| o.map_or(0.0, |o| x * weights.scale[o] / y)).collect();
        site.check_multipliers(&mult)?;
        Ok((bias, mult))
    }
}
