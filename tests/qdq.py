"""Small QDQ networks with known parameters, for golden files and live comparisons with ONNX Runtime.

Values become random weights; scales follow the ranges that a sample input gives, so that results use most of
their 256 steps and some of them saturate.
"""

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

ort.set_default_logger_severity(3)
TYPES = {"u8": np.uint8, "s8": np.int8}


class Net:
    """A graph under construction; methods take and return names of float values."""

    def __init__(self, seed, shape, act="u8", binary=False):
        """`binary`: scales are powers of two, so that float arithmetic is exact and ties are common."""
        self.rng, self.binary = np.random.default_rng(seed), binary
        self.shape, self.act = shape, act
        self.nodes, self.constants = [], []
        self.sample = self.images(1)[0]
        self.scales, self.channels, self.side = {}, {"x": shape[1]}, {}

    def images(self, count):
        """Smooth pictures with noise: real ones are not white."""
        n, c, h, w = self.shape
        coarse = self.rng.normal(0.3, 1.0, (count, n, c, (h + 3) // 4, (w + 3) // 4))
        smooth = coarse.repeat(4, 3).repeat(4, 4)[..., :h, :w]
        return (smooth + self.rng.normal(0, 0.4, (count, *self.shape))).astype(np.float32)

    def constant(self, value, name):
        name = f"{name}.{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, op, inputs, **attributes):
        name = f"{op.lower()}.{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=f"n.{name}", **attributes))
        self.channels[name] = self.channels.get(inputs[0])
        return name

    def flatten(self, x):
        y = self.node("Flatten", [x])
        self.scales[y], self.side[y] = self.scales[x], self.side[x]
        return y

    def model(self, output, shape=None):
        graph = helper.make_graph(
            self.nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)],
            self.constants,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    def finish(self, output):
        """The model with its output's shape, as other tools want it."""
        shape = run(self.model(output), [self.sample])[0].shape
        model = self.model(output, shape)
        onnx.checker.check_model(model, full_check=True)
        return model

    def round(self, scale):
        return np.float32(2.0 ** np.ceil(np.log2(scale))) if self.binary else np.float32(scale)

    def range_of(self, name):
        y = run(self.model(name), [self.sample], plain=True)[0]
        return float(y.min()), float(y.max())

    def quantize(self, x, act=None, reach=0.9, range=None):
        """QuantizeLinear → DequantizeLinear over `reach` of the value's range: the rest saturates."""
        act = act or self.act
        lo, hi = range or self.range_of(x)
        lo, hi = min(lo * reach, 0.0), max(hi * reach, 1e-3)
        info = np.iinfo(TYPES[act])
        scale = self.round((hi - lo) / 255)
        zero = TYPES[act](np.clip(round(info.min - lo / scale), info.min, info.max))
        s, z = self.constant(scale, "s"), self.constant(zero, "z")
        q = self.node("QuantizeLinear", [x, s, z])
        y = self.node("DequantizeLinear", [q, s, z])
        self.scales[y], self.side[y] = scale, (s, z)
        return y

    def again(self, x):
        """Another QuantizeLinear → DequantizeLinear with x's own parameters."""
        s, z = self.side[x]
        y = self.node("DequantizeLinear", [self.node("QuantizeLinear", [x, s, z]), s, z])
        self.scales[y], self.side[y] = self.scales[x], self.side[x]
        return y

    def same(self, y, like):
        """QuantizeLinear → DequantizeLinear of y with the parameters of `like`."""
        self.side[y] = self.side[like]
        self.scales[y] = self.scales[like]
        return self.again(y)

    def weights(self, dims, axis, per_channel, spread=2.0):
        out = dims[axis]
        w = np.clip(self.rng.normal(0, 45, dims).round(), -127, 127).astype(np.int8)
        scale = np.float32(0.01 * np.exp(self.rng.uniform(-1, 1, out if per_channel else 1) * np.log(spread)))
        scale = np.array([self.round(s) for s in scale])
        if per_channel:
            names = [self.constant(w, "w"), self.constant(scale, "s"), self.constant(np.zeros(out, np.int8), "z")]
            return self.node("DequantizeLinear", names, axis=axis), scale
        names = [self.constant(w, "w"), self.constant(scale[0], "s"), self.constant(np.int8(0), "z")]
        return self.node("DequantizeLinear", names), np.repeat(scale, out)

    def bias(self, x, scale):
        """int32 at the scale that the standard asks for."""
        s = (self.scales[x] * scale).astype(np.float32)
        b = self.rng.integers(-3000, 3000, len(scale), dtype=np.int32)
        names = [self.constant(b, "b"), self.constant(s, "s"), self.constant(np.zeros(len(s), np.int32), "z")]
        return self.node("DequantizeLinear", names, axis=0)

    def conv(self, x, out, kernel=3, group=1, per_channel=True, bias=True, spread=2.0, **attributes):
        kh, kw = (kernel, kernel) if isinstance(kernel, int) else kernel
        w, scale = self.weights([out, self.channels[x] // group, kh, kw], 0, per_channel, spread)
        inputs = [x, w] + ([self.bias(x, scale)] if bias else [])
        y = self.node("Conv", inputs, kernel_shape=[kh, kw], group=group, **attributes)
        self.channels[y] = out
        return y

    def conv_transpose(self, x, out, kernel, group=1, per_channel=True, bias=True, **attributes):
        """Scales of one output each; with groups, of all that have the same place in their group."""
        each = out // group
        w, scale = self.weights([self.channels[x], each, *kernel], 1, per_channel)
        inputs = [x, w] + ([self.bias(x, np.tile(scale, group))] if bias else [])
        y = self.node("ConvTranspose", inputs, kernel_shape=list(kernel), group=group, **attributes)
        self.channels[y] = out
        return y

    def gemm(self, x, size, out, trans=True):
        w, scale = self.weights([out, size] if trans else [size, out], 0 if trans else 1, True)
        return self.node("Gemm", [x, w, self.bias(x, scale)], transB=int(trans))

    def mat_mul_add(self, x, size, out):
        w, scale = self.weights([size, out], 1, False)
        return self.node("Add", [self.node("MatMul", [x, w]), self.bias(x, scale)])


def session(model, plain=False):
    """ONNX Runtime as users have it (`plain=False`), or node by node in float, as the file is written."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    # Without VNNI its u8·s8 products saturate unless told not to.
    options.add_session_config_entry("session.x64quantprecision", "1")
    if plain:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(model, images, plain=False):
    s = session(model, plain)
    return [s.run(None, {s.get_inputs()[0].name: x})[0] for x in images]


def resnet(seed, width=8, classes=10, act="u8", bare=True):
    """ResNet-18's topology, thin, 3×32×32, random weights; `bare`: no Q/DQ between a branch and its Add."""
    n = Net(seed, [1, 3, 32, 32], act)
    x = n.quantize("x")
    x = n.quantize(n.node("Relu", [n.conv(x, width, 7, strides=[2, 2], pads=[3, 3, 3, 3])]))
    pooled = n.node("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    x = n.same(pooled, x)
    for stage in range(4):
        for block in range(2):
            out, stride = width << stage, 2 if stage and not block else 1
            y = n.quantize(n.node("Relu", [n.conv(x, out, strides=[stride, stride], pads=[1, 1, 1, 1])]))
            y = n.conv(y, out, pads=[1, 1, 1, 1])
            y = y if bare else n.quantize(y)
            if stride == 2:
                x = n.quantize(n.conv(x, out, 1, strides=[2, 2]))
            x = n.quantize(n.node("Relu", [n.node("Add", [y, x])]))
    x = n.quantize(n.node("GlobalAveragePool", [x]))
    return n, n.quantize(n.gemm(n.again(n.flatten(x)), width * 8, classes), reach=1.0)


def random_net(seed):
    """Convolutions of every kind, additions, pools and joins in a random chain; 6 quantized outputs."""
    r = np.random.default_rng(seed)
    n = Net(seed, [1, int(r.integers(1, 5)), 20, 20], "us"[r.integers(2)] + "8")
    x = n.quantize("x")
    for _ in range(r.integers(2, 6)):
        c = n.channels[x]
        match r.integers(8):
            case 0 | 1:
                out = int(r.choice([4, 8, 12, 17]))
                k, d = int(r.choice([1, 3, 5])), int(r.choice([1, 1, 2]))
                pad = [int(p) for p in r.integers(k // 2, k // 2 + 2, 4)]
                stride = [int(s) for s in r.choice([1, 1, 2], 2)]
                y = n.conv(x, out, k, per_channel=bool(r.integers(2)), pads=[p * d for p in pad], dilations=[d, d], strides=stride)
                y = n.node("Relu", [y]) if r.integers(2) else y
            case 2:
                y = n.conv(x, c, 3, group=c, pads=[1, 1, 1, 1])
            case 3:
                y = n.node("Add", [n.conv(x, c, 3, pads=[1, 1, 1, 1]), x])
                y = n.node("Relu", [y]) if r.integers(2) else y
            case 4:
                y = n.node("Add", [n.quantize(n.conv(x, c, 1)), x])
            case 5:
                y = n.node("Concat", [n.quantize(n.conv(x, 5, 1)), x], axis=1)
                n.channels[y] = c + 5
            case 6:
                y = n.node("MaxPool", [x], kernel_shape=[3, 3], strides=[1, 1], pads=[1, 0, 1, 2])
                x = n.same(y, x)
                continue
            case _:
                y = n.node("AveragePool", [x], kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=int(r.integers(2)))
        x = n.quantize(y)
    x, c = n.quantize(n.node("GlobalAveragePool", [x])), n.channels[x]
    return n, n.quantize(n.gemm(n.flatten(x), c, 6), reach=1.0)
