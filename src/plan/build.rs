//! The planner: one pass for shapes, one for halos, one for lifetimes, one that makes the steps.

use super::arena::{self, Request};
use super::{Blob, Buffer, Conv, Excess, GATHER_STEP, Gather, GemmOutput, PooledConv, Port, Program, Step, StepInfo, Winograd, strip_rows};
use crate::graph::{Clamp, DType, Graph, Node, Op, QuantParams, TensorId, Weights, Window};
use crate::kernels::winograd::{LANES, POINTS, TILE, WinogradKernel, is_exact, pack};
use crate::kernels::{ConvKernel, Domain, Requant, ResidualParams, Run, SLACK, excess, pack_weights};
use crate::{Error, Result};

/// Transformed inputs of a strip of Winograd tiles: half of a common second-level cache.
const STRIP_BYTES: usize = 256 << 10;
/// Products of a batch of them: more of them reuse a panel of weights more often, but leave the first-level cache.
const BATCH_BYTES: usize = 72 << 10;

/// Channels of a cache line.
const LINE: usize = 64;
/// Weights that stay in the first-level cache beside what else a tile needs.
const TOGETHER_BYTES: usize = 20 << 10;

/// Runs from this length on are as fast where they lie as in one.
const LONG_RUN: usize = 64;
/// What is gathered of a pixel, at most: sixteen pixels' take half of a small core's first-level cache.
const GATHERED_BYTES: usize = 1024;

/// Rows between a convolution and its max-pool that fit a second-level cache beside weights and input.
const POOLED_BYTES: usize = 128 << 10;

/// Which algorithm 3×3 convolutions take. Results are the same, bit for bit, but for [`Policy::Tract`]'s.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// Whichever the cost model finds faster.
    #[default]
    Fastest,
    /// Never Winograd.
    Direct,
    /// Winograd wherever it is exact.
    Winograd,
    /// No integer kernels at all: tract runs the whole model, quantized or not. What ours are compared with.
    Tract,
}

/// Largest arena a model may ask for, bytes.
pub(super) const MAX_ARENA: usize = 1 << 30;

/// Height, width, channels; `flat` if ONNX sees `[1, channels]`.
#[derive(Debug, Clone, Copy)]
struct Shape {
    hwc: [usize; 3],
    flat: bool,
}

impl Shape {
    fn onnx(&self) -> Vec<usize> {
        let [h, w, c] = self.hwc;
        if self.flat { vec![1, h * w * c] } else { vec![1, c, h, w] }
    }
}

/// ONNX shapes of the region's float targets, in order.
pub fn target_shapes(graph: &Graph, source_shape: impl Fn(&str) -> Result<Vec<usize>>) -> Result<Vec<Vec<usize>>> {
    let shapes = infer_shapes(graph, &source_ports(graph, source_shape)?)?;
    Ok(graph
        .nodes
        .iter()
        .filter_map(|node| match &node.op {
            Op::Dequantize { .. } => Some(shapes[node.inputs[0]].onnx()),
            Op::Gemm { weights, float_output: Some(_), .. } => Some(vec![1, weights.out]),
            _ => None,
        })
        .collect())
}

fn source_ports(graph: &Graph, source_shape: impl Fn(&str) -> Result<Vec<usize>>) -> Result<Vec<Port>> {
    graph.sources().into_iter().map(|name| Ok(Port { name: name.to_owned(), shape: source_shape(name)? })).collect()
}

/// Plans `graph` for one image whose float sources have the ONNX shapes that `source_shape` gives, to be run by `threads`.
pub fn build(
    graph: &Graph,
    kernel: &'static ConvKernel,
    policy: Policy,
    threads: usize,
    source_shape: impl Fn(&str) -> Result<Vec<usize>>,
) -> Result<Program> {
    let sources = source_ports(graph, source_shape)?;
    let shapes = infer_shapes(graph, &sources)?;
    let pooled = pooled_convs(graph, &shapes);
    let buffers = place(graph, &shapes, kernel, &pooled)?;
    let mut builder = Builder {
        graph,
        kernel,
        policy,
        threads,
        shapes: &shapes,
        buffers: &buffers.0,
        sources: &sources,
        targets: Vec::new(),
        steps: Vec::new(),
        info: Vec::new(),
    };
    for (index, node) in graph.nodes.iter().enumerate() {
        match pooled.iter().find(|(conv, pool)| *conv == index || *pool == index) {
            None => builder.lower(node)?,
            Some(&(conv, pool)) if pool == index => builder.pooled_conv(&graph.nodes[conv], node)?,
            // It runs with its pool.
            Some(_) => {}
        }
    }
    let Builder { steps, info, targets, .. } = builder;
    let scratch_bytes = steps.iter().map(Step::scratch_bytes).max().unwrap_or(0);
    Ok(Program { kernel, steps, info, arena_bytes: buffers.1 + SLACK, scratch_bytes, targets, sources })
}

fn shape_error(node: &Node, reason: impl std::fmt::Display) -> Error {
    Error::Shape(format!("node `{}` ({}): {reason}", node.name, node.op.name()))
}

fn infer_shapes(graph: &Graph, sources: &[Port]) -> Result<Vec<Shape>> {
    let mut shapes: Vec<Option<Shape>> = vec![None; graph.tensors.len()];
    for node in &graph.nodes {
        let inputs: Vec<Shape> = node
            .inputs
            .iter()
            .map(|&t| shapes[t].ok_or_else(|| shape_error(node, "an input is used before it is made")))
            .collect::<Result<_>>()?;
        let windowed = |window: &Window, x: Shape| {
            if x.flat {
                return Err(shape_error(node, "a picture [1, C, H, W] is needed, not a vector"));
            }
            window
                .output([x.hwc[0], x.hwc[1]])
                .ok_or_else(|| shape_error(node, format!("the window {:?} does not fit an input of {:?}", window.kernel, x.onnx())))
        };
        let out = match &node.op {
            Op::Quantize { source } => {
                let port = sources.iter().find(|p| p.name == *source).ok_or_else(|| shape_error(node, "unknown source"))?;
                match port.shape[..] {
                    [1, c, h, w] if c * h * w > 0 => Shape { hwc: [h, w, c], flat: false },
                    [1, c] if c > 0 => Shape { hwc: [1, 1, c], flat: true },
                    _ => {
                        return Err(shape_error(
                            node,
                            format!("`{source}` has shape {:?}; [1, C, H, W] or [1, C] is supported", port.shape),
                        ));
                    }
                }
            }
            Op::Conv { weights, window, groups, residual, .. } => {
                let x = inputs[0];
                let [h, w] = windowed(window, x)?;
                let taps = window.kernel[0] * window.kernel[1];
                // One kernel for each output, or the two whose sum is meant.
                let kernel = x.hwc[2] / groups * taps;
                let kernels = weights.per_out == kernel || weights.per_out == 2 * kernel;
                if !x.hwc[2].is_multiple_of(*groups) || !weights.out.is_multiple_of(*groups) || !kernels {
                    return Err(shape_error(
                        node,
                        format!(
                            "weights for {} inputs per output do not match {} input channels in {groups} groups",
                            weights.per_out, x.hwc[2]
                        ),
                    ));
                }
                let out = Shape { hwc: [h, w, weights.out], flat: false };
                if *residual && inputs[1].hwc != out.hwc {
                    return Err(shape_error(node, format!("the residual has shape {:?}, not {:?}", inputs[1].onnx(), out.onnx())));
                }
                out
            }
            Op::Gemm { weights, .. } => {
                let values: usize = inputs[0].hwc.iter().product();
                if values != weights.per_out {
                    return Err(shape_error(node, format!("{} inputs per output do not match {values} input values", weights.per_out)));
                }
                Shape { hwc: [1, 1, weights.out], flat: true }
            }
            Op::MaxPool { window } | Op::AveragePool { window: Some(window), .. } => {
                let [h, w] = windowed(window, inputs[0])?;
                Shape { hwc: [h, w, inputs[0].hwc[2]], flat: false }
            }
            Op::AveragePool { window: None, .. } => Shape { hwc: [1, 1, inputs[0].hwc[2]], flat: false },
            Op::Add { .. } => {
                if inputs[0].hwc != inputs[1].hwc {
                    return Err(shape_error(
                        node,
                        format!("{:?} and {:?} differ; broadcasting is not supported", inputs[0].onnx(), inputs[1].onnx()),
                    ));
                }
                inputs[0]
            }
            Op::Concat => {
                let [h, w, _] = inputs[0].hwc;
                if inputs.iter().any(|s| s.hwc[..2] != [h, w]) {
                    return Err(shape_error(node, "inputs differ in height or width"));
                }
                Shape { hwc: [h, w, inputs.iter().map(|s| s.hwc[2]).sum()], flat: inputs[0].flat }
            }
            Op::Requantize { .. } | Op::Map { .. } | Op::Dequantize { .. } => inputs[0],
        };
        if let Some(t) = node.output {
            shapes[t] = Some(Shape { flat: out.flat || graph.tensors[t].flat, ..out });
        }
    }
    shapes.into_iter().map(|s| s.ok_or_else(|| Error::Shape("a tensor is never made".into()))).collect()
}

/// Runs of `len` bytes each as one, which is gathered from them.
fn join(runs: &[Run], len: usize, kr: usize) -> (Vec<Run>, Option<Gather>) {
    let steps = (runs.len() * len).div_ceil(kr);
    let row = (steps * kr).max((runs.len() - 1) * len + len.next_multiple_of(GATHER_STEP)).next_multiple_of(GATHER_STEP);
    (vec![Run { offset: 0, steps }], Some(Gather { pieces: runs.iter().map(|r| r.offset).collect(), len, row }))
}

/// Convolutions, and the max-pools that alone read them, that run as one [`PooledConv`]: indices of both nodes.
fn pooled_convs(graph: &Graph, shapes: &[Shape]) -> Vec<(usize, usize)> {
    let pair = |(pool, node): (usize, &Node)| {
        let (Op::MaxPool { window }, Some(out)) = (&node.op, node.output) else { return None };
        let between = node.inputs[0];
        let conv = graph.nodes.iter().position(|n| n.output == Some(between))?;
        let Op::Conv { window: taps, groups: 1, residual: false, .. } = &graph.nodes[conv].op else { return None };
        let readers = graph.nodes.iter().flat_map(|n| &n.inputs).filter(|t| **t == between).count();
        let [h, w, c] = shapes[between].hwc;
        let rows = strip_rows(window);
        let plain = window.dilation == [1, 1] && graph.tensors[between].quant == graph.tensors[out].quant;
        // Those that could be Winograd's gain more by that.
        let direct = taps.kernel != [3, 3] || taps.stride != [1, 1];
        (readers == 1 && plain && direct && 2 * rows <= h && rows * w * c <= POOLED_BYTES).then_some((conv, pool))
    };
    graph.nodes.iter().enumerate().filter_map(pair).collect()
}

/// Halos from what consumers pad, slots from lifetimes. Returns the arena's size too.
fn place(graph: &Graph, shapes: &[Shape], kernel: &ConvKernel, pooled: &[(usize, usize)]) -> Result<(Vec<Buffer>, usize)> {
    let mut halos = vec![[0usize; 4]; shapes.len()];
    let mut lives = vec![(usize::MAX, 0usize); shapes.len()];
    for (step, node) in graph.nodes.iter().enumerate() {
        if let Op::Conv { window, .. } = &node.op {
            let halo = &mut halos[node.inputs[0]];
            for (h, pad) in halo.iter_mut().zip(window.pad) {
                *h = (*h).max(pad);
            }
        }
        for &t in node.inputs.iter().chain(&node.output) {
            lives[t] = (lives[t].0.min(step), lives[t].1.max(step));
        }
    }
    for &(conv, pool) in pooled {
        let src = graph.nodes[conv].inputs[0];
        lives[src].1 = lives[src].1.max(pool);
    }
    let unplaced = |t: TensorId| pooled.iter().any(|&(conv, _)| graph.nodes[conv].output == Some(t));
    let mut buffers = Vec::with_capacity(shapes.len());
    let mut requests = Vec::with_capacity(shapes.len());
    for (t, shape) in shapes.iter().enumerate() {
        let zero_point = graph.tensors[t].quant.zero_point + domain_shift(graph.tensors[t].quant.dtype, kernel.domain);
        let [h, w, c] = shape.hwc;
        let bytes = (h + halos[t][0] + halos[t][2])
            .checked_mul(w + halos[t][1] + halos[t][3])
            .and_then(|p| p.checked_mul(c))
            .filter(|&b| b <= MAX_ARENA)
            .ok_or_else(|| Error::Shape(format!("tensor `{}` of {:?} is too large", graph.tensors[t].name, shape.onnx())))?;
        buffers.push(Buffer { base: 0, shape: shape.hwc, halo: halos[t], zero_point });
        // Slack belongs to the slot, so that a kernel's over-read never meets another thread's write.
        let bytes = if unplaced(t) { 0 } else { bytes + SLACK };
        requests.push(Request { bytes, first: lives[t].0, last: lives[t].1 });
    }
    let (offsets, total) = arena::assign(&requests);
    if total > MAX_ARENA {
        return Err(Error::Shape(format!("activations need {total} bytes, more than the limit of {MAX_ARENA}")));
    }
    for (buffer, offset) in buffers.iter_mut().zip(offsets) {
        buffer.base = offset;
    }
    Ok((buffers, total))
}

/// What to add to a value of `dtype` to have it in `domain`.
fn domain_shift(dtype: DType, domain: Domain) -> i32 {
    match (dtype, domain) {
        (DType::U8, Domain::U8) | (DType::I8, Domain::S8) => 0,
        (DType::I8, Domain::U8) => 128,
        (DType::U8, Domain::S8) => -128,
    }
}

struct Builder<'a> {
    graph: &'a Graph,
    kernel: &'static ConvKernel,
    policy: Policy,
    threads: usize,
    shapes: &'a [Shape],
    buffers: &'a [Buffer],
    sources: &'a [Port],
    targets: Vec<Port>,
    steps: Vec<Step>,
    info: Vec<StepInfo>,
}

impl Builder<'_> {
    fn quant(&self, t: TensorId) -> QuantParams {
        self.graph.tensors[t].quant
    }

    fn requant(&self, out: TensorId, clamp: Clamp) -> Requant {
        let q = self.quant(out);
        let (min, max) = q.dtype.range();
        // Rounding is monotone: clamping real values and then rounding equals clamping rounded values.
        let bound = |real: f32, otherwise: i32| {
            if real.is_finite() {
                ((real / q.scale).round_ties_even() as i32).saturating_add(q.zero_point).clamp(min, max)
            } else {
                otherwise
            }
        };
        let (lo, hi) = (bound(clamp.lo, min), bound(clamp.hi, max));
        Requant { zero_point: self.buffers[out].zero_point, lo: (lo - q.zero_point) as f32, hi: (hi - q.zero_point) as f32 }
    }

    fn target(&mut self, name: &str, shape: Vec<usize>) -> usize {
        self.targets.push(Port { name: name.to_owned(), shape });
        self.targets.len() - 1
    }

    fn push(&mut self, node: &Node, step: Step, macs: u64, weight_bytes: u64, kernel: &'static str) {
        let output = match (node.output, &node.op) {
            (Some(t), _) => self.shapes[t].onnx(),
            (None, _) => self.targets.last().map(|p| p.shape.clone()).unwrap_or_default(),
        };
        self.steps.push(step);
        self.info.push(StepInfo {
            name: node.name.clone(),
            op: node.op.name().into(),
            kernel: kernel.into(),
            inputs: match &node.op {
                Op::Quantize { source } => self.sources.iter().filter(|p| p.name == *source).map(|p| p.shape.clone()).collect(),
                _ => node.inputs.iter().map(|&t| self.shapes[t].onnx()).collect(),
            },
            output,
            quant: node.output.map(|t| (self.quant(t).scale, self.quant(t).zero_point)),
            macs,
            weight_bytes,
        });
    }

    fn lower(&mut self, node: &Node) -> Result<()> {
        let src = |i: usize| self.buffers[node.inputs[i]];
        let out = node.output.unwrap_or(0);
        let dst = || self.buffers[out];
        match &node.op {
            Op::Quantize { source } => {
                let index = self.sources.iter().position(|p| p.name == *source).ok_or_else(|| shape_error(node, "unknown source"))?;
                let step = Step::Quantize {
                    source: index,
                    dst: dst(),
                    scale: self.quant(out).scale,
                    requant: self.requant(out, Clamp::default()),
                };
                self.push(node, step, 0, 0, "quantize");
            }
            Op::Conv { weights, window, groups, residual, clamp } => self.conv(node, weights, window, *groups, *residual, *clamp)?,
            Op::Gemm { weights, clamp, float_output } => self.gemm(node, weights, *clamp, float_output.as_deref())?,
            Op::MaxPool { window } => {
                if self.quant(node.inputs[0]) != self.quant(out) {
                    return Err(shape_error(node, "input and output must share their quantization"));
                }
                let step = Step::MaxPool { src: src(0), dst: dst(), window: *window };
                self.push(node, step, 0, 0, "maxpool");
            }
            Op::AveragePool { window, count_include_pad, clamp } => {
                let s = src(0);
                let whole = Window { kernel: [s.shape[0], s.shape[1]], stride: [1, 1], dilation: [1, 1], pad: [0; 4], ceil: false };
                let scales = [self.quant(node.inputs[0]).scale, self.quant(out).scale];
                let step = Step::AveragePool {
                    src: s,
                    dst: dst(),
                    window: window.unwrap_or(whole),
                    count_include_pad: *count_include_pad,
                    scales,
                    requant: self.requant(out, *clamp),
                };
                self.push(node, step, 0, 0, "averagepool");
            }
            Op::Add { clamp } => {
                let y = self.quant(out).scale;
                let mult = [self.quant(node.inputs[0]).scale / y, self.quant(node.inputs[1]).scale / y];
                check_multipliers(node, &mult)?;
                let step = Step::Add { src: [src(0), src(1)], mult, dst: dst(), requant: self.requant(out, *clamp) };
                self.push(node, step, 0, 0, "add");
            }
            Op::Requantize { clamp } => {
                let step = Step::Lookup { src: src(0), dst: dst(), channel: 0, table: self.table(node.inputs[0], out, *clamp, |x| x) };
                self.push(node, step, 0, 0, "lookup");
            }
            Op::Map { map, clamp } => {
                let table = self.table(node.inputs[0], out, *clamp, |x| map.at(x));
                self.push(node, Step::Lookup { src: src(0), dst: dst(), channel: 0, table }, 0, 0, "lookup");
            }
            Op::Concat => {
                let mut channel = 0;
                for &t in &node.inputs {
                    let step =
                        Step::Lookup { src: self.buffers[t], dst: dst(), channel, table: self.table(t, out, Clamp::default(), |x| x) };
                    channel += self.buffers[t].shape[2];
                    self.push(node, step, 0, 0, "lookup");
                }
            }
            Op::Dequantize { target } => {
                let (s, scale, shape) = (src(0), self.quant(node.inputs[0]).scale, self.shapes[node.inputs[0]].onnx());
                let target = self.target(target, shape);
                self.push(node, Step::Dequantize { src: s, target, scale }, 0, 0, "dequantize");
            }
        }
        Ok(())
    }

    /// `q ↦ quantize(f(dequantize(q)))`, computed as QuantizeLinear(f(DequantizeLinear(q))) does.
    fn table(&self, from: TensorId, to: TensorId, clamp: Clamp, f: impl Fn(f32) -> f32) -> Blob<u8> {
        let (zero_point, scale, y) = (self.buffers[from].zero_point, self.quant(from).scale, self.quant(to).scale);
        let requant = self.requant(to, clamp);
        let domain = self.kernel.domain;
        (0..=255).map(|b| requant.quantize(f((domain.decode(b) - zero_point) as f32 * scale) / y)).collect::<Vec<u8>>().into()
    }

    /// See [`pooled_convs`].
    fn pooled_conv(&mut self, conv: &Node, pool: &Node) -> Result<()> {
        self.lower(conv)?;
        let (Some(Step::Conv(conv)), Some(info), Op::MaxPool { window }, Some(out)) =
            (self.steps.pop(), self.info.last_mut(), &pool.op, pool.output)
        else {
            return Err(shape_error(pool, "it follows no convolution"));
        };
        info.name = format!("{} + {}", info.name, pool.name);
        info.op = format!("{}+{}", info.op, pool.op.name());
        info.output = self.shapes[out].onnx();
        let mut conv = *conv;
        conv.dst.base = 0;
        self.steps.push(Step::PooledConv(Box::new(PooledConv { conv, window: *window, dst: self.buffers[out] })));
        Ok(())
    }

    fn conv(&mut self, node: &Node, weights: &Weights, window: &Window, groups: usize, residual: bool, clamp: Clamp) -> Result<()> {
        let (input, out) = (node.inputs[0], node.output.unwrap_or(0));
        let (src, dst) = (self.buffers[input], self.buffers[out]);
        let (x, y) = (self.quant(input), self.quant(out));
        let (kernel, [kh, kw]) = (self.kernel, window.kernel);
        let macs = (dst.shape[0] * dst.shape[1] * weights.data.len()) as u64;
        let residual = if residual {
            let r = node.inputs[1];
            let params = ResidualParams { zero_point: self.buffers[r].zero_point, mult: self.quant(r).scale / y.scale };
            check_multipliers(node, &[params.mult])?;
            Some((self.buffers[r], params))
        } else {
            None
        };
        // Output channels in groups of `nr`, the last one padded.
        let per_channel = |nr: usize, first: usize, count: usize| -> Result<(Vec<i32>, Vec<f32>)> {
            let channels = || (0..count.next_multiple_of(nr)).map(move |o| (o < count).then_some(first + o));
            let bias = channels().map(|o| o.map_or(Ok(0), |o| fold_bias(node, weights, o, src.zero_point))).collect::<Result<_>>()?;
            // The order of operations is ONNX Runtime's, so that multipliers agree to the last bit.
            let mult: Vec<f32> = channels().map(|o| o.map_or(0.0, |o| x.scale * weights.scale[o] / y.scale)).collect();
            check_multipliers(node, &mult)?;
            Ok((bias, mult))
        };
        if let Some(winograd) = self.winograd(weights, window, groups, src, dst) {
            let depth = src.shape[2].next_multiple_of(LANES);
            let tiles = [dst.shape[0].div_ceil(TILE), dst.shape[1].div_ceil(TILE)];
            let (bias, mult) = per_channel(winograd.nr, 0, weights.out)?;
            let packed = pack(winograd, &weights.data, weights.out, src.shape[2]);
            let weight_bytes = (2 * packed.len() + 4 * bias.len() + 4 * mult.len()) as u64;
            let most = (tiles[0] * tiles[1]).next_multiple_of(winograd.mr);
            let whole_heights = |tiles: usize| (tiles / winograd.mr * winograd.mr).clamp(winograd.mr, most);
            let step = Step::Winograd(Box::new(Winograd {
                kernel: winograd,
                src,
                dst,
                residual,
                pad: [window.pad[0], window.pad[1]],
                tiles,
                depth,
                strip: whole_heights(STRIP_BYTES / (POINTS * 2 * depth)),
                batch: whole_heights(BATCH_BYTES / (POINTS * 4 * winograd.nr)),
                weights: packed.into(),
                bias: bias.into(),
                mult: mult.into(),
                requant: self.requant(out, clamp),
            }));
            self.push(node, step, macs, weight_bytes, winograd.name);
            return Ok(());
        }
        let channels = src.shape[2] / groups;
        let out_per_group = weights.out / groups;
        // Taps of a kernel row are neighbours in memory if nothing lies between them.
        let merged = groups == 1 && window.dilation[1] == 1;
        let (runs_x, taps_per_run) = if merged { (1, kw) } else { (kw, 1) };
        let run_len = taps_per_run * channels;
        // Where a row of weights holds two kernels, the same inputs are read twice.
        let kernels = weights.per_out / (channels * kh * kw);
        let runs: Vec<Run> = (0..kernels * kh)
            .flat_map(|row| (0..runs_x).map(move |kx| (row % kh, kx)))
            .map(|(ky, kx)| Run {
                offset: ky * window.dilation[0] * src.row_stride() + kx * window.dilation[1] * src.shape[2],
                steps: run_len.div_ceil(kernel.kr),
            })
            .collect();
        let short = runs.len() > 1 && run_len < LONG_RUN && runs.len() * run_len <= GATHERED_BYTES;
        let worth = kernel.unroll > 1 && groups == 1 && out_per_group >= 2 * kernel.nr;
        let (runs, gather) = if short && worth { join(&runs, run_len, kernel.kr) } else { (runs, None) };
        let pieces = gather.as_ref().map_or(1, |g| g.pieces.len());
        let run_lens = vec![pieces * run_len; runs.len()];
        let blocks = out_per_group.div_ceil(kernel.nr);
        let (mut packed, mut bias, mut mult) = (Vec::new(), Vec::new(), Vec::new());
        for group in 0..groups {
            packed.extend(pack_weights(kernel, out_per_group, &run_lens, |o, run, byte| {
                let (run, byte) = (run * pieces + byte / run_len, byte % run_len);
                let (row, kx, c) = (run / runs_x, run % runs_x + byte / channels, byte % channels);
                let of_kernel = row / kh * (channels * kh * kw);
                weights.data[(group * out_per_group + o) * weights.per_out + of_kernel + (c * kh + row % kh) * kw + kx]
            }));
            let (group_bias, group_mult) = per_channel(kernel.nr, group * out_per_group, out_per_group)?;
            bias.extend(group_bias);
            mult.extend(group_mult);
        }
        let narrow = !packed.contains(&i8::MIN);
        let excess = excess::Excess::take(kernel, &mut packed, &runs).map(Excess::from);
        let apart = excess.as_ref().map_or(0, Excess::bytes);
        let weight_bytes = (packed.len() + apart + 4 * bias.len() + 4 * mult.len()) as u64;
        let requant = self.requant(out, clamp);
        let block_len = packed.len() / (groups * blocks).max(1);
        // Whatever is smaller, pixels or weights, is walked in the inner loop and stays in a cache. Weights of so many blocks
        // at once as fit the first level, and as make whole cache lines of output.
        let few = (LINE.div_ceil(kernel.nr)).min(TOGETHER_BYTES / block_len.max(1)).clamp(1, (groups * blocks).max(1));
        let step = Step::Conv(Box::new(Conv {
            src,
            dst,
            residual,
            pad: [window.pad[0], window.pad[1]],
            stride: window.stride,
            groups,
            block_len,
            together: if packed.len() > src.len() { few } else { groups * blocks },
            runs,
            gather,
            excess,
            narrow,
            saturates: requant.saturates(kernel.domain, &mult, residual.as_ref().map(|(_, p)| p)),
            weights: packed.into(),
            bias: bias.into(),
            mult: mult.into(),
            requant,
        }));
        self.push(node, step, macs, weight_bytes, kernel.name);
        Ok(())
    }

    /// The Winograd kernel, if the layer has its form, the result is proven exact, and it is faster or asked for.
    fn winograd(&self, weights: &Weights, window: &Window, groups: usize, src: Buffer, dst: Buffer) -> Option<&'static WinogradKernel> {
        let kernel = self.kernel.winograd.as_ref().filter(|_| !matches!(self.policy, Policy::Direct | Policy::Tract))?;
        if window.kernel != [3, 3]
            || window.stride != [1, 1]
            || window.dilation != [1, 1]
            || groups != 1
            || weights.per_out != 9 * src.shape[2]
        {
            return None;
        }
        let [h, w, out] = dst.shape;
        let (tiles, depth) = (h.div_ceil(TILE) * w.div_ceil(TILE), src.shape[2].next_multiple_of(LANES));
        let product = POINTS * depth * out.next_multiple_of(kernel.nr);
        let transforms = kernel.transform_cost[0] * depth as f64 + kernel.transform_cost[1] * out as f64;
        let cost = tiles as f64 * (product as f64 / kernel.relative_speed + transforms);
        let direct = (h * w * weights.data.len()) as f64;
        let pays = cost < 0.9 * direct && 2 * product * self.threads <= (kernel.max_weight_bytes)();
        ((pays || self.policy == Policy::Winograd)
            && weights.data.chunks_exact(weights.per_out).all(|filter| is_exact(self.kernel.domain, filter)))
        .then_some(kernel)
    }

    fn gemm(&mut self, node: &Node, weights: &Weights, clamp: Clamp, float_output: Option<&str>) -> Result<()> {
        let input = node.inputs[0];
        let src = self.buffers[input];
        if src.halo != [0; 4] {
            return Err(shape_error(node, "its input is also padded by a convolution"));
        }
        let [h, w, c] = src.shape;
        // ONNX flattens C, H, W; the arena holds H, W, C.
        let mut data = Vec::with_capacity(weights.data.len());
        for row in weights.data.chunks_exact(weights.per_out) {
            for hw in 0..h * w {
                data.extend((0..c).map(|c| row[c * h * w + hw]));
            }
        }
        let bias = (0..weights.out).map(|o| fold_bias(node, weights, o, src.zero_point)).collect::<Result<Vec<_>>>()?;
        let x = self.quant(input).scale;
        let macs = weights.data.len() as u64;
        let weight_bytes = (data.len() + 8 * weights.out) as u64;
        let (scale, output): (Vec<f32>, _) = match (float_output, node.output) {
            (Some(name), _) => {
                let target = self.target(name, vec![1, weights.out]);
                (weights.scale.iter().map(|s| x * s).collect(), GemmOutput::Float { target })
            }
            (None, Some(out)) => {
                let y = self.quant(out).scale;
                (
                    weights.scale.iter().map(|s| x * s / y).collect(),
                    GemmOutput::Quantized { dst: self.buffers[out], requant: self.requant(out, clamp) },
                )
            }
            (None, None) => return Err(shape_error(node, "it has no output")),
        };
        check_multipliers(node, &scale)?;
        self.push(
            node,
            Step::Gemm { src, weights: data.into(), bias: bias.into(), scale: scale.into(), output },
            macs,
            weight_bytes,
            "gemm",
        );
        Ok(())
    }
}

/// Bias minus the input's zero point times the sum of weights; refuses sums that could leave 32 bits.
fn fold_bias(node: &Node, weights: &Weights, out: usize, zero_point: i32) -> Result<i32> {
    let row = &weights.data[out * weights.per_out..][..weights.per_out];
    let sum: i64 = row.iter().map(|&w| i64::from(w)).sum();
    let magnitude: i64 = row.iter().map(|&w| i64::from(w).abs()).sum();
    let bias = i64::from(weights.bias[out]) - i64::from(zero_point) * sum;
    if bias.abs() + 255 * magnitude > i64::from(i32::MAX) {
        return Err(Error::UnsupportedModel(format!(
            "node `{}`: the accumulator of output channel {out} can exceed 32 bits; check its bias and scales",
            node.name
        )));
    }
    Ok(bias as i32)
}

/// Multipliers so large that a 32-bit accumulator times one overflows f32 come from broken scales.
fn check_multipliers(node: &Node, mult: &[f32]) -> Result<()> {
    match mult.iter().find(|m| !(m.is_finite() && **m <= 1e20)) {
        Some(m) => Err(Error::UnsupportedModel(format!(
            "node `{}`: scales give the multiplier {m}; check scales of inputs, weights and output",
            node.name
        ))),
        None => Ok(()),
    }
}
