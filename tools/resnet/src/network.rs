//! A network as a list of layers: shapes, parameters, multiply-accumulates; no weights.

use crate::arch::{Block, Config};
use crate::{Error, Result};
use serde::Serialize;

/// Most bytes of parameters: an ONNX file is one protobuf message of less than 2 GiB.
pub const MAX_PARAMETER_BYTES: u64 = (2 << 30) - (8 << 20);

/// C×H×W of one picture's tensor; H = W = 1 for vectors.
pub type Shape = [usize; 3];

/// A tensor: the network's input, or the output of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value {
    /// The picture.
    Input,
    /// Output of the layer at this position.
    Layer(usize),
}

/// An operation; its geometry is square.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "op", rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Op {
    Conv {
        kernel: usize,
        stride: usize,
        padding: usize,
        dilation: usize,
        groups: usize,
    },
    BatchNorm,
    Relu,
    /// 3×3, stride 2, padding 1.
    MaxPool,
    Add,
    GlobalAveragePool,
    Flatten,
    Linear,
}

/// What a parameter is, which says how it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// O×(I/groups)×K×K.
    ConvWeight,
    /// Of a convolution without BatchNorm.
    ConvBias,
    /// BatchNorm's γ; `last` of a residual branch or not.
    Gamma {
        /// Ends a residual branch.
        last: bool,
    },
    /// BatchNorm's β.
    Beta,
    /// BatchNorm's running mean.
    Mean,
    /// BatchNorm's running variance.
    Variance,
    /// Classes×features.
    LinearWeight,
    /// Of the classifier.
    LinearBias {
        /// Features it sums.
        fan_in: usize,
    },
}

impl Role {
    /// PyTorch counts running statistics as buffers, not parameters.
    pub fn is_buffer(self) -> bool {
        matches!(self, Role::Mean | Role::Variance)
    }
}

/// One weight tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameter {
    /// As in torchvision's `state_dict`.
    pub name: String,
    /// Dimensions.
    pub dims: Vec<usize>,
    /// Purpose.
    pub role: Role,
}

impl Parameter {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.dims.iter().product()
    }
    /// Never true: no dimension is 0.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// One operation of the network.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Module path in torchvision's style; also the name of the output tensor.
    pub name: String,
    /// Operation.
    pub op: Op,
    /// What it reads.
    pub inputs: Vec<Value>,
    /// Its result.
    pub output: Shape,
    /// Its weights, in the order ONNX wants them.
    pub parameters: Vec<Parameter>,
}

impl Layer {
    /// Parameters as PyTorch counts them, running statistics left out.
    pub fn parameter_count(&self) -> u64 {
        self.parameters.iter().filter(|p| !p.role.is_buffer()).map(|p| p.len() as u64).sum()
    }

    /// Multiply-accumulates of convolutions and the classifier for one picture; 0 for everything else.
    pub fn macs(&self) -> u64 {
        let weight = |p: &&Parameter| matches!(p.role, Role::ConvWeight | Role::LinearWeight);
        let pixels = (self.output[1] * self.output[2]) as u64;
        self.parameters.iter().find(weight).map_or(0, |p| p.len() as u64 * pixels)
    }
}

/// A whole network.
#[derive(Debug, Clone)]
pub struct Network {
    /// What it was made from.
    pub config: Config,
    /// In order of computation.
    pub layers: Vec<Layer>,
}

impl Network {
    /// Lays the network out. Fails where torchvision's blocks do, and where the weights would not fit an ONNX file.
    pub fn new(config: Config) -> Result<Network> {
        let size = config.size;
        let mut b = Builder { layers: Vec::new(), plain: config.arch.is_plain(), size, bytes: 0 };
        let width = config.width;
        let stem = b.conv("conv1", Value::Input, 3, Conv { out: width, kernel: 7, stride: 2, dilation: 1, groups: 1 })?;
        let stem = b.norm("bn1", stem, false)?;
        let stem = b.op("relu", Op::Relu, &[stem]);
        let mut x = b.op("maxpool", Op::MaxPool, &[stem]);
        let mut dilation = 1;
        for stage in 0..4 {
            let planes = width << stage;
            let mut stride = if stage == 0 { 1 } else { 2 };
            // torchvision: a dilating stage's first block still uses the dilation before it.
            let mut block_dilation = dilation;
            if stage > 0 && config.dilate[stage - 1] {
                dilation *= stride;
                stride = 1;
            }
            for i in 0..config.layers[stage] {
                let name = format!("layer{}.{i}", stage + 1);
                x = b.block(&name, x, &config, planes, stride, block_dilation)?;
                (stride, block_dilation) = (1, dilation);
            }
        }
        let mean = b.op("avgpool", Op::GlobalAveragePool, &[x]);
        let flat = b.op("flatten", Op::Flatten, &[mean]);
        b.linear("fc", flat, config.num_classes)?;
        Ok(Network { config, layers: b.layers })
    }

    /// Every weight tensor, in order.
    pub fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        self.layers.iter().flat_map(|l| &l.parameters)
    }

    /// Parameters as PyTorch counts them.
    pub fn parameter_count(&self) -> u64 {
        self.layers.iter().map(Layer::parameter_count).sum()
    }

    /// Multiply-accumulates for one picture.
    pub fn macs(&self) -> u64 {
        self.layers.iter().map(Layer::macs).sum()
    }
}

struct Conv {
    out: usize,
    kernel: usize,
    stride: usize,
    dilation: usize,
    groups: usize,
}

struct Builder {
    layers: Vec<Layer>,
    plain: bool,
    size: usize,
    bytes: u64,
}

impl Builder {
    fn shape(&self, v: Value) -> Shape {
        match v {
            Value::Input => [3, self.size, self.size],
            Value::Layer(i) => self.layers[i].output,
        }
    }

    fn push(&mut self, name: &str, op: Op, inputs: &[Value], output: Shape, parameters: Vec<Parameter>) -> Result<Value> {
        self.bytes += parameters.iter().map(|p| 4 * p.len() as u64).sum::<u64>();
        if self.bytes > MAX_PARAMETER_BYTES {
            return Err(Error::Usage(format!(
                "the weights up to {name} take {} MB, an ONNX file holds {} MB; choose a smaller width or fewer classes",
                self.bytes >> 20,
                MAX_PARAMETER_BYTES >> 20
            )));
        }
        self.layers.push(Layer { name: name.into(), op, inputs: inputs.to_vec(), output, parameters });
        Ok(Value::Layer(self.layers.len() - 1))
    }

    fn conv(&mut self, name: &str, x: Value, inputs: usize, c: Conv) -> Result<Value> {
        let [_, h, w] = self.shape(x);
        let padding = c.dilation * (c.kernel - 1) / 2;
        let side = |n: usize| (n + 2 * padding - c.dilation * (c.kernel - 1) - 1) / c.stride + 1;
        let dims = vec![c.out, inputs / c.groups, c.kernel, c.kernel];
        let mut parameters = vec![Parameter { name: format!("{name}.weight"), dims, role: Role::ConvWeight }];
        if self.plain {
            parameters.push(Parameter { name: format!("{name}.bias"), dims: vec![c.out], role: Role::ConvBias });
        }
        let op = Op::Conv { kernel: c.kernel, stride: c.stride, padding, dilation: c.dilation, groups: c.groups };
        self.push(name, op, &[x], [c.out, side(h), side(w)], parameters)
    }

    /// BatchNorm, which the plain form does without.
    fn norm(&mut self, name: &str, x: Value, last: bool) -> Result<Value> {
        if self.plain {
            return Ok(x);
        }
        let shape = self.shape(x);
        let parameter = |suffix: &str, role| Parameter { name: format!("{name}.{suffix}"), dims: vec![shape[0]], role };
        let parameters = vec![
            parameter("weight", Role::Gamma { last }),
            parameter("bias", Role::Beta),
            parameter("running_mean", Role::Mean),
            parameter("running_var", Role::Variance),
        ];
        self.push(name, Op::BatchNorm, &[x], shape, parameters)
    }

    /// An operation without weights.
    fn op(&mut self, name: &str, op: Op, inputs: &[Value]) -> Value {
        let [c, h, w] = self.shape(inputs[0]);
        let output = match op {
            Op::MaxPool => [c, (h - 1) / 2 + 1, (w - 1) / 2 + 1],
            Op::GlobalAveragePool => [c, 1, 1],
            _ => [c, h, w],
        };
        self.layers.push(Layer { name: name.into(), op, inputs: inputs.to_vec(), output, parameters: vec![] });
        Value::Layer(self.layers.len() - 1)
    }

    fn linear(&mut self, name: &str, x: Value, classes: usize) -> Result<Value> {
        let features = self.shape(x)[0];
        let parameters = vec![
            Parameter { name: format!("{name}.weight"), dims: vec![classes, features], role: Role::LinearWeight },
            Parameter { name: format!("{name}.bias"), dims: vec![classes], role: Role::LinearBias { fan_in: features } },
        ];
        self.push(name, Op::Linear, &[x], [classes, 1, 1], parameters)
    }

    fn block(&mut self, name: &str, x: Value, config: &Config, planes: usize, stride: usize, dilation: usize) -> Result<Value> {
        let inputs = self.shape(x)[0];
        let outputs = planes * config.block.expansion();
        let groups = config.groups;
        // (kernel, output channels, stride, dilation, groups) of the branch
        let branch = match config.block {
            Block::Basic => {
                if groups != 1 || config.width_per_group != 64 {
                    return Err(Error::Usage(format!(
                        "{}: BasicBlock supports only --groups 1 and --width-per-group 64",
                        config.arch.name()
                    )));
                }
                if dilation > 1 {
                    return Err(Error::Usage(format!(
                        "{}: BasicBlock does not support dilation ({name}); take resnet50 or deeper",
                        config.arch.name()
                    )));
                }
                vec![(3, planes, stride, 1, 1), (3, planes, 1, 1, 1)]
            }
            Block::Bottleneck => {
                let width = planes * config.width_per_group / 64 * groups;
                if width == 0 {
                    return Err(Error::Usage(format!(
                        "{name}: {planes} planes at {} per group leave no channels; --width must be at least {}",
                        config.width_per_group,
                        64usize.div_ceil(config.width_per_group)
                    )));
                }
                let (first, second) = if self.plain { (stride, 1) } else { (1, stride) };
                vec![(1, width, first, 1, 1), (3, width, second, dilation, groups), (1, outputs, 1, 1, 1)]
            }
        };
        let count = branch.len();
        let mut y = x;
        for (i, (kernel, out, stride, dilation, groups)) in branch.into_iter().enumerate() {
            let (n, last) = (i + 1, i + 1 == count);
            let inputs = self.shape(y)[0];
            y = self.conv(&format!("{name}.conv{n}"), y, inputs, Conv { out, kernel, stride, dilation, groups })?;
            y = self.norm(&format!("{name}.bn{n}"), y, last)?;
            if !last || self.plain {
                y = self.op(&format!("{name}.relu{n}"), Op::Relu, &[y]);
            }
        }
        let mut shortcut = x;
        if stride != 1 || inputs != outputs {
            let conv = if self.plain { format!("{name}.connect") } else { format!("{name}.downsample.0") };
            shortcut = self.conv(&conv, x, inputs, Conv { out: outputs, kernel: 1, stride, dilation: 1, groups: 1 })?;
            shortcut = self.norm(&format!("{name}.downsample.1"), shortcut, false)?;
            if self.plain {
                shortcut = self.op(&format!("{name}.connect_relu"), Op::Relu, &[shortcut]);
            }
        }
        let sum = self.op(&format!("{name}.add"), Op::Add, &[y, shortcut]);
        // In the plain form both addends are ≥ 0 already.
        Ok(if self.plain { sum } else { self.op(&format!("{name}.relu"), Op::Relu, &[sum]) })
    }
}
