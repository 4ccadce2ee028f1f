"""Writes a QDQ ResNet of edge-quantize's as an int8 model of ncnn's, so that ncnn runs the same network: the same weights, activations
symmetric as ncnn has them, requantization fused wherever ncnn2int8 would.

Formats: ncnn's docs/developer-guide/param-and-model-file-structure.md, and the layers' load_param and load_model."""
import numpy as np
import onnx
from onnx import numpy_helper

INT8_TAG = np.uint32(0x000D4B38)


class Unsupported(Exception):
    """The model has something that is not translated here."""


class _Writer:
    def __init__(self):
        self.layers, self.weights, self.blobs = [], bytearray(), set()

    def layer(self, kind, name, inputs, outputs, **parameters):
        self.blobs.update(outputs)
        numbers = " ".join(f"{key[1:]}={value}" for key, value in parameters.items())
        self.layers.append([kind, name, inputs, outputs, numbers])

    def floats(self, values):
        self.weights += np.asarray(values, np.float32).tobytes()

    def int8(self, values):
        data = np.ascontiguousarray(values, np.int8).tobytes()
        self.weights += INT8_TAG.tobytes() + data + bytes(-len(data) % 4)

    def param(self):
        lines = ["7767517", f"{len(self.layers)} {len(self.blobs)}"]
        for kind, name, inputs, outputs, numbers in self.layers:
            lines.append(" ".join([kind, name, str(len(inputs)), str(len(outputs)), *inputs, *outputs, numbers]).rstrip())
        return "\n".join(lines) + "\n"


def convert(path):
    """`(param text, bin bytes, input blob, output blob)`."""
    model = onnx.load(path)
    graph = model.graph
    constants = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    weights, scales, relu, alias = {}, {}, set(), {}
    data_input = next(i.name for i in graph.input if i.name not in constants)
    nodes = []
    for node in graph.node:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "QuantizeLinear":
            source = alias.get(node.input[0], node.input[0])
            scale, zero = float(constants[node.input[1]]), constants[node.input[2]]
            low, high = np.iinfo(zero.dtype).min, np.iinfo(zero.dtype).max
            # The largest magnitude either side of zero becomes 127.
            scales[source] = 127.0 / (scale * max(high - int(zero), int(zero) - low))
            # A range that starts at zero is a ReLU.
            if int(zero) == low and source != data_input:
                relu.add(source)
            alias[node.output[0]] = source
        elif node.op_type == "DequantizeLinear":
            if node.input[0] in constants:
                weights[node.output[0]] = (constants[node.input[0]], constants[node.input[1]])
            else:
                alias[node.output[0]] = alias.get(node.input[0], node.input[0])
        elif node.op_type in ("Flatten", "Reshape"):
            alias[node.output[0]] = alias.get(node.input[0], node.input[0])
        elif node.op_type == "Relu":
            source = alias.get(node.input[0], node.input[0])
            relu.add(source)
            alias[node.output[0]] = source
        else:
            nodes.append((node, attributes))
    data = {n.output[0]: [alias.get(i, i) for i in n.input if i not in weights and i not in constants] for n, _ in nodes}
    consumers = {}
    for node, _ in nodes:
        for source in data[node.output[0]]:
            consumers.setdefault(source, []).append(node)

    out = _Writer()
    taken = {}

    def split(blob):
        """ncnn's blobs have one reader each."""
        readers = len(consumers.get(blob, []))
        if readers > 1:
            out.layer("Split", f"split_{blob}", [blob], [f"{blob}.{i}" for i in range(readers)])

    def read(blob):
        if len(consumers[blob]) < 2:
            return blob
        taken[blob] = taken.get(blob, 0) + 1
        return f"{blob}.{taken[blob] - 1}"

    out.layer("Input", "input", [], [data_input])
    split(data_input)
    for node, attributes in nodes:
        name = node.output[0]
        inputs = [read(i) for i in data[name]]
        readers = consumers.get(name, [])
        if node.op_type == "Conv":
            (w, w_scale), bias = weights[node.input[1]], weights.get(node.input[2]) if len(node.input) > 2 else None
            if attributes.get("group", 1) != 1:
                raise Unsupported("grouped convolutions")
            (kh, kw), (sh, sw), pads = attributes["kernel_shape"], attributes.get("strides", [1, 1]), attributes.get("pads", [0] * 4)
            dilation = attributes.get("dilations", [1, 1])
            requantized = readers and all(r.op_type == "Conv" for r in readers)
            out.layer(
                "Convolution", name, inputs, [name],
                _0=w.shape[0], _1=kw, _11=kh, _2=dilation[1], _12=dilation[0], _3=sw, _13=sh,
                _4=pads[1], _14=pads[0], _15=pads[3], _16=pads[2], _5=1, _6=w.size,
                _8=101 if requantized else 1, _9=1 if name in relu else 0,
            )
            out.int8(w)
            out.floats(bias[0] * bias[1] if bias else np.zeros(w.shape[0]))
            out.floats(1 / np.broadcast_to(w_scale, w.shape[0]))
            out.floats([scales[data[name][0]]])
            if requantized:
                out.floats([scales[name]])
        elif node.op_type == "Gemm":
            (w, w_scale), bias = weights[node.input[1]], weights[node.input[2]]
            if not attributes.get("transB"):
                w = w.T
            out.layer("InnerProduct", name, inputs, [name], _0=w.shape[0], _1=1, _2=w.size, _8=1)
            out.int8(w)
            out.floats(bias[0] * bias[1])
            out.floats(1 / np.broadcast_to(w_scale, w.shape[0]))
            out.floats([scales[data[name][0]]])
        elif node.op_type == "Add":
            total = f"{name}.sum" if name in relu else name
            out.layer("BinaryOp", f"{name}.add", inputs, [total], _0=0)
            if name in relu:
                out.layer("ReLU", name, [total], [name])
        elif node.op_type == "MaxPool":
            (k, _), (s, _), pads = attributes["kernel_shape"], attributes["strides"], attributes.get("pads", [0] * 4)
            out.layer("Pooling", name, inputs, [name], _0=0, _1=k, _2=s, _3=pads[0], _5=1)
        elif node.op_type == "GlobalAveragePool":
            out.layer("Pooling", name, inputs, [name], _0=1, _4=1)
        else:
            raise Unsupported(f"{node.op_type} `{node.name}`")
        split(name)
    output = alias.get(graph.output[0].name, graph.output[0].name)
    return out.param().replace("/", "_"), bytes(out.weights), data_input.replace("/", "_"), output.replace("/", "_")
