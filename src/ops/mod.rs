//! The operators: one file or folder each.
//!
//! An operator is two things. Its *definition* (a variant of [`Op`], a struct that is an `Operator`) says what to compute on quantized
//! tensors: name, shape rule, exact reference, and how it is planned. Its *step* (a variant of `Step`, a struct that is a `StepOp`) is what
//! the planner makes of it for one processor: addresses, packed weights, what to check of them, and how a thread does its share.
//! Both enums are made from the lists below. `docs/adding-an-operator.md` adds one, file by file.
//!
//! | from | by | to |
//! |---|---|---|
//! | ONNX nodes | [`crate::import::lower`] | [`Graph`] of [`Op`] |
//! | [`Op`] | `Operator::plan` | `Step` |
//! | `Step` | [`crate::exec`] | results |

mod add;
mod average_pool;
mod broadcast;
mod concat;
pub(crate) mod conv;
mod depth_to_space;
mod dequantize;
mod function;
mod gather;
mod gemm;
mod graph;
mod join;
mod lookup;
mod max_pool;
mod mul;
mod pad;
mod planner;
mod prelu;
mod quantize;
mod rearrange;
pub mod reference;
mod resize;
mod slice;
mod space_to_depth;
mod taps;

pub use add::{Add, Sub};
pub use average_pool::{AveragePool, ReduceSum};
pub use concat::Concat;
pub use conv::Conv;
pub use depth_to_space::{DepthToSpace, Groups};
pub use dequantize::Dequantize;
pub use function::{Arithmetic, Expression, Function, MAX_NODES};
pub use gemm::Gemm;
pub use graph::{Graph, Node};
pub use join::Join;
pub use lookup::{Map, Requantize};
pub use max_pool::{GlobalMaxPool, MaxPool};
pub use mul::Mul;
pub use pad::{Border, Pad};
pub use planner::Policy;
pub(crate) use planner::{Cost, Planner, Site, StepInfo, domain_shift};
pub use prelu::PRelu;
pub use quantize::Quantize;
pub use rearrange::{Rearrange, View};
pub use resize::{Coordinates, Nearest, Resize, ResizeLinear, ResizeNearest, ResizeTo};
pub use slice::{Extent, Slice};
pub use space_to_depth::SpaceToDepth;

use crate::graph::Shape;
#[cfg(target_arch = "x86_64")]
use crate::kernels::SimdLevel;
use crate::program::{AnyBlob, Buffer, Check, Checker, Context, StepOp};
use reference::{Inputs, Results};
use serde::{Deserialize, Serialize};

/// What an operator is, beside what its fields say.
pub(crate) trait Operator {
    /// Its name in reports: ONNX's, where ONNX has it.
    fn name(&self) -> &'static str;

    /// Shape of the result, float or quantized, or why there is none.
    fn shape(&self, inputs: &[Shape]) -> Result<Shape, String>;

    /// Pixels of zero points it wants around its first input: top, left, bottom, right.
    fn padding(&self) -> [usize; 4] {
        [0; 4]
    }

    /// The float value that it reads instead of quantized tensors.
    fn source(&self) -> Option<&str> {
        None
    }

    /// The float value that it makes instead of a quantized tensor.
    fn target(&self) -> Option<&str> {
        None
    }

    /// The channel of its only input at which its output starts, if that is nothing but some channels of it: no step is needed then.
    fn view(&self, _input: &Shape) -> Option<usize> {
        None
    }

    /// Emits its steps.
    fn plan(&self, site: &Site<'_>, planner: &mut Planner<'_>) -> crate::Result<()>;

    /// The definition, one value at a time: what every kernel equals bit for bit.
    fn reference(&self, inputs: &Inputs<'_>) -> Results;
}

macro_rules! operators {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// An operation on quantized tensors.
        #[derive(Debug, Clone)]
        pub enum Op {
            $($(#[$doc])* $name($name)),*
        }

        impl Op {
            pub(crate) fn operator(&self) -> &dyn Operator {
                match self {
                    $(Op::$name(op) => op),*
                }
            }
        }

        $(impl From<$name> for Op {
            fn from(op: $name) -> Op {
                Op::$name(op)
            }
        })*
    };
}

operators! {
    /// A float value from outside the region is quantized (ONNX `QuantizeLinear`).
    Quantize,
    /// Convolution, perhaps plus a residual, then a clamp, then one requantization.
    Conv,
    /// Fully connected layer over all values of one image.
    Gemm,
    /// Largest value of each window.
    MaxPool,
    /// Mean of each window.
    AveragePool,
    /// Largest value of each channel.
    GlobalMaxPool,
    /// Sum of each channel.
    ReduceSum,
    /// Sum of two tensors in real values.
    Add,
    /// Difference of two tensors in real values.
    Sub,
    /// Product of two tensors in real values.
    Mul,
    /// Another scale, zero point or range for the same values.
    Requantize,
    /// A function of each value.
    Map,
    /// Leaky rectifier with a slope for each channel.
    PRelu,
    /// Concatenation along channels.
    Concat,
    /// Concatenation along height or width.
    Join,
    /// Some channels, rows and columns.
    Slice,
    /// A constant around a tensor.
    Pad,
    /// Reshapes and transpositions in a row.
    Rearrange,
    /// Channels become pixels.
    DepthToSpace,
    /// Pixels become channels.
    SpaceToDepth,
    /// Another size, each value that of one pixel.
    ResizeNearest,
    /// Another size, each value a mean of four pixels.
    ResizeLinear,
    /// A quantized tensor leaves the region as floats (ONNX `DequantizeLinear`).
    Dequantize,
}

impl Op {
    /// The operator's name in reports.
    pub fn name(&self) -> &'static str {
        self.operator().name()
    }
}

macro_rules! steps {
    ($($(#[$doc:meta])* $name:ident($kind:ty)),* $(,)?) => {
        /// One step of a program.
        #[derive(Debug, Serialize, Deserialize)]
        #[allow(clippy::large_enum_variant)] // The large ones are boxed.
        pub(crate) enum Step {
            $($(#[$doc])* $name($kind)),*
        }

        impl StepOp for Step {
            fn check(&self, checker: &Checker<'_>) -> Check {
                match self {
                    $(Step::$name(step) => step.check(checker)),*
                }
            }

            #[allow(unsafe_code)]
            unsafe fn run(&self, cx: &Context<'_>) {
                // SAFETY: the contract is the same.
                unsafe {
                    match self {
                        $(Step::$name(step) => at_level(step, cx)),*
                    }
                }
            }

            fn dst(&self) -> Option<&Buffer> {
                match self {
                    $(Step::$name(step) => step.dst()),*
                }
            }

            fn blobs(&mut self) -> Vec<&mut dyn AnyBlob> {
                match self {
                    $(Step::$name(step) => step.blobs()),*
                }
            }

            fn addresses(&mut self) -> Vec<&mut dyn AnyBlob> {
                match self {
                    $(Step::$name(step) => step.addresses()),*
                }
            }

            fn scratch_bytes(&self) -> usize {
                match self {
                    $(Step::$name(step) => step.scratch_bytes()),*
                }
            }
        }
    };
}

steps! {
    /// f32 NCHW source → bytes.
    Quantize(quantize::QuantizeStep),
    /// Convolution, product by product.
    Conv(Box<conv::direct::DirectConv>),
    /// Convolution and the max-pool after it.
    PooledConv(Box<conv::pooled::PooledConv>),
    /// Convolution with one filter per channel.
    Depthwise(Box<conv::depthwise::Depthwise>),
    /// 3×3 convolution with fewer multiplications.
    Winograd(Box<conv::winograd::Winograd>),
    /// Fully connected.
    Gemm(gemm::GemmStep),
    /// Largest value of each window.
    MaxPool(max_pool::MaxPoolStep),
    /// Mean of each window.
    AveragePool(average_pool::AveragePoolStep),
    /// Sum or difference of two tensors.
    Add(add::AddStep),
    /// Product of two tensors.
    Mul(mul::MulStep),
    /// Leaky rectifier.
    PRelu(prelu::PReluStep),
    /// Any function of one byte.
    Lookup(lookup::LookupStep),
    /// Bytes from elsewhere, as tables say.
    Gather(gather::GatherStep),
    /// Bilinear interpolation.
    ResizeLinear(resize::ResizeStep),
    /// Bytes → f32 NCHW target.
    Dequantize(dequantize::DequantizeStep),
}

/// One thread's share, with the widest plain loops that the program's processor has. A function for each step and level: one function of
/// all of them takes the compiler minutes.
///
/// # Safety
/// As [`StepOp::run`].
#[allow(unsafe_code)]
#[inline]
unsafe fn at_level<S: StepOp>(step: &S, cx: &Context<'_>) {
    // SAFETY: a supported kernel's level is supported too; the contract is the same.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        match cx.kernel.level {
            SimdLevel::Avx512 => return at_avx512(step, cx),
            SimdLevel::Avx2 => return at_avx2(step, cx),
            SimdLevel::Baseline => {}
        }
        step.run(cx);
    }
}

/// [`StepOp::run`], compiled for AVX-512.
///
/// # Safety
/// As [`StepOp::run`].
#[allow(unsafe_code)]
#[cfg(target_arch = "x86_64")]
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn at_avx512<S: StepOp>(step: &S, cx: &Context<'_>) {
    // SAFETY: the contract is the same.
    unsafe { step.run(cx) }
}

/// [`StepOp::run`], compiled for AVX2.
///
/// # Safety
/// As [`StepOp::run`].
#[allow(unsafe_code)]
#[cfg(target_arch = "x86_64")]
#[inline(never)]
#[target_feature(enable = "avx2")]
unsafe fn at_avx2<S: StepOp>(step: &S, cx: &Context<'_>) {
    // SAFETY: the contract is the same.
    unsafe { step.run(cx) }
}

impl<S: StepOp> StepOp for Box<S> {
    fn check(&self, checker: &Checker<'_>) -> Check {
        (**self).check(checker)
    }

    #[inline(always)]
    #[allow(unsafe_code)]
    unsafe fn run(&self, cx: &Context<'_>) {
        // SAFETY: the contract is the same.
        unsafe { (**self).run(cx) }
    }

    fn dst(&self) -> Option<&Buffer> {
        (**self).dst()
    }

    fn blobs(&mut self) -> Vec<&mut dyn AnyBlob> {
        (**self).blobs()
    }

    fn addresses(&mut self) -> Vec<&mut dyn AnyBlob> {
        (**self).addresses()
    }

    fn scratch_bytes(&self) -> usize {
        (**self).scratch_bytes()
    }
}
