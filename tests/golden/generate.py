#!/usr/bin/env python3
"""Writes the golden files beside this script: NAME.onnx, NAME.in.f32 and NAME.out.f32.

An output file holds ONNX Runtime's result as users have it (graph optimised, fused integer kernels), then its result
node by node in float. Made with onnx 1.23.2, onnxruntime 1.32.0 on x86-64 with AVX-512 VNNI:
    python3 tests/golden/generate.py
"""

import pathlib
import sys
import tempfile
import zlib

import numpy as np
import onnx
import onnxruntime as ort

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from qdq import Net, resnet, run  # noqa: E402

P1 = [1, 1, 1, 1]
CASES = {}
SEED = 0  # of the case at hand: a new case leaves the others as they are


def case(build):
    CASES[build.__name__] = build
    return build


def one_conv(act="u8", channels=3, out=8, **kw):
    """x → Q/DQ → Conv → Q/DQ"""
    n = Net(SEED, [1, channels, 13, 11], act)
    return n, n.quantize(n.conv(n.quantize("x"), out, **kw))


def activation(op, act="u8", range=None, **kw):
    n = Net(SEED, [1, 3, 9, 9], act)
    y = n.conv(n.quantize("x"), 8, pads=P1)
    bounds = [n.constant(np.float32(v), "bound") for v in kw.pop("bounds", [])]
    return n, n.quantize(n.node(op, [y, *bounds], **kw), range=range)


def pool(op, act="u8", same=False, **kw):
    n = Net(SEED, [1, 5, 12, 10], act)
    x = n.quantize("x")
    y = n.node(op, [x], **kw)
    return n, n.same(y, x) if same else n.quantize(y)


def residual(act, bare, binary=False):
    n = Net(SEED, [1, 6, 10, 10], act, binary)
    x = n.quantize("x")
    y = n.conv(x, 6, pads=P1)
    y = y if bare else n.quantize(y)
    return n, n.quantize(n.node("Relu", [n.node("Add", [y, x])]))


@case
def conv_u8_per_channel(): return one_conv(pads=P1)
@case
def conv_s8_per_channel(): return one_conv("s8", pads=P1)
@case
def conv_u8_per_tensor(): return one_conv(pads=P1, per_channel=False)
@case
def conv_every_channel_scale(): return one_conv(pads=P1, out=20, spread=200.0, bias=False)
@case
def conv_grouped(): return one_conv(channels=6, out=4, group=2, pads=P1)
@case
def conv_depthwise(): return one_conv(channels=7, out=14, group=7, pads=P1)
@case
def conv_dilated(): return one_conv(dilations=[2, 3], pads=[2, 3, 2, 3])
@case
def conv_strided(): return one_conv(kernel=(5, 3), strides=[2, 3], pads=[2, 1, 2, 1])
@case
def conv_asymmetric_padding(): return one_conv("s8", kernel=4, pads=[0, 3, 2, 1])
@case
def conv_relu(): return activation("Relu")
@case
def conv_relu_above_zero_point(): return activation("Relu", "s8", range=(-1.0, 3.0))
@case
def conv_clip(): return activation("Clip", range=(-0.5, 4.0), bounds=[-0.3, 1.7])
@case
def residual_bare_u8(): return residual("u8", True)
@case
def residual_bare_s8(): return residual("s8", True)
@case
def residual_quantized(): return residual("u8", False)


@case
def residual_ties(): return residual("u8", True, binary=True)


@case
def conv_ties():
    n = Net(SEED, [1, 3, 12, 12], "s8", binary=True)
    return n, n.quantize(n.conv(n.quantize("x"), 8, kernel=1, per_channel=False))


@case
def add():
    n = Net(SEED, [1, 6, 10, 10])
    x = n.quantize("x")
    return n, n.quantize(n.node("Add", [n.quantize("x", "u8", 0.6), x]))


@case
def concat():
    n = Net(SEED, [1, 6, 10, 10], "s8")
    x = n.quantize("x")
    return n, n.quantize(n.node("Concat", [n.quantize("x", "s8", 0.5), x], axis=1))


@case
def relu_alone():
    n = Net(SEED, [1, 6, 10, 10])
    return n, n.quantize(n.node("Relu", [n.quantize("x")]))


@case
def max_pool_padded(): return pool("MaxPool", "s8", True, kernel_shape=[3, 3], strides=[2, 2], pads=P1)
@case
def max_pool_ceil(): return pool("MaxPool", same=True, kernel_shape=[3, 2], strides=[2, 2], ceil_mode=1)
@case
def max_pool_requantized(): return pool("MaxPool", kernel_shape=[2, 2])
@case
def average_pool(): return pool("AveragePool", kernel_shape=[3, 3], strides=[2, 2], pads=P1)
@case
def average_pool_counts_padding(): return pool("AveragePool", "s8", kernel_shape=[3, 2], pads=P1, count_include_pad=1)
@case
def global_average_pool(): return pool("GlobalAveragePool")
@case
def global_average_pool_s8(): return pool("GlobalAveragePool", "s8")


def head(kind, quantized, again=True):
    """`again`: Q/DQ after Flatten, as ONNX Runtime's quantizer writes it (and needs it to fuse)."""
    n = Net(SEED, [1, 4, 3, 3])
    x = n.flatten(n.quantize("x"))
    x = n.again(x) if again else x
    y = n.gemm(x, 36, 9) if kind == "gemm" else n.gemm(x, 36, 9, False) if kind == "gemm_untransposed" else n.mat_mul_add(x, 36, 9)
    return n, n.quantize(y) if quantized else y


@case
def gemm_float_output(): return head("gemm", False)
@case
def gemm_after_plain_flatten(): return head("gemm", False, False)
@case
def gemm_quantized_output(): return head("gemm", True)
@case
def gemm_not_transposed(): return head("gemm_untransposed", True)
@case
def mat_mul_add(): return head("matmul", True)


@case
def float_island():
    """int8 → Sin in float → int8"""
    return between_convolutions(lambda n, x: n.node("Sin", [x]))


def between_convolutions(function):
    n = Net(SEED, [1, 3, 9, 9])
    y = function(n, n.quantize(n.conv(n.quantize("x"), 6, pads=P1)))
    return n, n.quantize(n.conv(n.quantize(y), 5, pads=P1))


@case
def sigmoid(): return between_convolutions(lambda n, x: n.node("Sigmoid", [x]))
@case
def hard_sigmoid(): return between_convolutions(lambda n, x: n.node("HardSigmoid", [x], alpha=0.15, beta=0.4))
@case
def hard_swish(): return between_convolutions(lambda n, x: n.node("HardSwish", [x]))
@case
def silu(): return between_convolutions(lambda n, x: n.node("Mul", [x, n.node("Sigmoid", [x])]))
@case
def silu_quantized_gate(): return between_convolutions(lambda n, x: n.node("Mul", [x, n.quantize(n.node("Sigmoid", [x]))]))


def pair(op, second="u8", shape=None):
    """x and another tensor: another quantization of it, or a smaller one."""
    n = Net(SEED, [1, 6, 10, 10])
    a = n.quantize("x")
    b = n.quantize(n.node("GlobalAveragePool", [a])) if shape == "gate" else n.quantize("x", second, 0.6)
    return n, n.quantize(n.node(op, [b, a] if shape == "gate" else [a, b]))


@case
def sub(): return pair("Sub", "s8")
@case
def mul(): return pair("Mul")
@case
def mul_by_gate(): return pair("Mul", shape="gate")
@case
def add_of_gate(): return pair("Add", shape="gate")


@case
def squeeze_excite():
    """x · HardSigmoid(Conv(Relu(Conv(mean of x))))"""
    def block(n, x):
        mean = n.quantize(n.node("GlobalAveragePool", [x]))
        squeezed = n.quantize(n.node("Relu", [n.conv(mean, 3, kernel=1)]))
        return n.node("Mul", [n.quantize(n.node("HardSigmoid", [n.quantize(n.conv(squeezed, 6, kernel=1))])), x])
    return between_convolutions(block)


def functions(*names, **attributes):
    """Each function of its own convolution's result, joined: one file for several functions."""
    n = Net(SEED, [1, 3, 6, 6])
    x = n.quantize("x")
    results = []
    for function in names:
        y = n.quantize(n.conv(x, 4, pads=P1))
        y = function(n, y) if callable(function) else n.node(function, [y], **attributes)
        results.append(n.quantize(y))
    return n, n.quantize(n.node("Concat", results, axis=1))


@case
def functions_rectifiers(): return functions("LeakyRelu", "Elu", "Celu", alpha=0.3)
@case
def functions_smooth(): return functions("Selu", "Softplus", "Softsign", "Tanh", "Erf")
@case
def functions_arithmetic():
    def exp(n, x): return n.node("Exp", [n.node("Neg", [n.node("Abs", [x])])])
    return functions("Abs", "Neg", exp, lambda n, x: n.node("Sqrt", [n.node("Abs", [x])]))


@case
def functions_with_constants():
    def by(op, value, first=False):
        def build(n, x):
            c = n.constant(np.float32(value), "c")
            return n.node(op, [c, x] if first else [x, c])
        return build
    def square(n, x): return n.node("Mul", [n.node("Pow", [x, n.constant(np.float32(2), "c")]), n.constant(np.float32(0.1), "c")])
    def log(n, x): return n.node("Log", [n.node("Add", [n.node("Abs", [x]), n.constant(np.float32(0.7), "c")])])
    def inverse(n, x): return n.node("Reciprocal", [n.node("Add", [n.node("Exp", [x]), n.constant(np.float32(0.7), "c")])])
    return functions(by("Mul", 0.37), by("Add", 1.3), by("Sub", 0.9, True), by("Div", 3.7), square, log, inverse)


@case
def functions_composed():
    """Gelu in both of the ways that exporters write it, HardSwish and Mish."""
    def gelu(n, x):
        c = [n.constant(np.float32(v), "c") for v in (np.sqrt(2), 1, 0.5)]
        y = n.node("Add", [n.node("Erf", [n.node("Div", [x, c[0]])]), c[1]])
        return n.node("Mul", [n.node("Mul", [x, y]), c[2]])
    def gelu_tanh(n, x):
        c = [n.constant(np.float32(v), "c") for v in (3, 0.044715, np.sqrt(2 / np.pi), 1, 0.5)]
        inner = n.node("Add", [x, n.node("Mul", [n.node("Pow", [x, c[0]]), c[1]])])
        y = n.node("Add", [n.node("Tanh", [n.node("Mul", [inner, c[2]])]), c[3]])
        return n.node("Mul", [n.node("Mul", [x, y]), c[4]])
    def hard_swish(n, x):
        c = [n.constant(np.float32(v), "c") for v in (3, 0, 6, 6)]
        return n.node("Div", [n.node("Mul", [x, n.node("Clip", [n.node("Add", [x, c[0]]), c[1], c[2]])]), c[3]])
    def mish(n, x): return n.node("Mul", [x, n.node("Tanh", [n.node("Softplus", [x])])])
    return functions(gelu, gelu_tanh, hard_swish, mish)


def prelu_of(slope):
    n = Net(SEED, [1, 6, 10, 10])
    return n, n.quantize(n.node("PRelu", [n.quantize("x"), n.constant(np.array(slope, np.float32), "slope")]))


@case
def prelu_one_slope(): return prelu_of([0.2])
@case
def prelu_per_channel(): return prelu_of([[[v]] for v in (0.1, -0.4, 0.7, 1.3, 0.0, 0.25)])


@case
def global_max_pool(): return pool("GlobalMaxPool", same=True)
@case
def reduce_max_requantized(): return pool("ReduceMax", "s8", axes=[-1, -2])
@case
def reduce_mean_to_vector(): return pool("ReduceMean", axes=[2, -1], keepdims=0)


@case
def reduce_sum():
    n = Net(SEED, [1, 5, 12, 10])
    return n, n.quantize(n.node("ReduceSum", [n.quantize("x"), n.constant(np.array([-2, 3]), "axes")]))


@case
def float_conv_of_dequantized_weights():
    """Weights are quantized, activations are not: stays float; every channel has its own scale."""
    n = Net(SEED, [1, 3, 9, 9])
    n.scales["x"] = np.float32(0.01)
    return n, n.conv("x", 7, spread=200.0, pads=P1)


@case
def resnet_bare(): return resnet(3)
@case
def resnet_quantized_branches(): return resnet(4, bare=False)


def q_operators(model):
    """The same network in QOperator form, as ONNX Runtime's optimiser rewrites it before it goes to NHWC."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = f"{folder}/q.onnx"
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath)


@case
def q_operators_resnet(): return resnet(5, width=4, bare=False)
@case
def q_operators_average_pool(): return pool("AveragePool", kernel_shape=[3, 3], strides=[2, 2], pads=P1)


@case
def q_operators_mul():
    n, y = pair("Mul", shape="gate")
    return n, n.quantize(n.conv(y, 5, pads=P1))


for old in [*HERE.glob("*.onnx"), *HERE.glob("*.f32")]:
    old.unlink()
for name, build in CASES.items():
    SEED = zlib.crc32(name.encode())
    net, output = build()
    model = net.finish(output)
    model = q_operators(model) if name.startswith("q_operators") else model
    images = net.images(1)
    onnx.save(model, HERE / f"{name}.onnx")
    images.tofile(HERE / f"{name}.in.f32")
    results = [run(model, images, plain)[0] for plain in (False, True)]
    np.concatenate([r.ravel() for r in results]).astype(np.float32).tofile(HERE / f"{name}.out.f32")
    different = int((results[0] != results[1]).sum())
    kinds = len(np.unique(results[0]))
    print(f"{name:36} {results[0].size:6} values, {kinds:4} distinct, {different} differ between fused and float")
