#!/usr/bin/env python3
"""Quantizes small networks with ONNX Runtime's own tool, in every form it knows, and writes its results on some pictures.

    quantizers.py FOLDER THIN        THIN: a float model, 1x3x64x64 (models/thin.onnx)

Prints one line per file: name, and how many of its logits depend on the optimizations ONNX Runtime does."""

import itertools
import pathlib
import sys

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

ort.set_default_logger_severity(4)
folder = pathlib.Path(sys.argv[1])
rng = np.random.default_rng(0)


def pictures(count, side):
    coarse = rng.normal(0.0, 1.0, (count, 1, 3, side // 4, side // 4))
    return (coarse.repeat(4, 3).repeat(4, 4) + rng.normal(0, 0.3, (count, 1, 3, side, side))).astype(np.float32)


def small():
    """Clip, AveragePool (of nine values: few ties), a sum, and two fully connected layers."""
    shapes = {"a": (16, 3, 3, 3), "b": (16, 16, 3, 3), "c": (16, 16, 1, 1), "f": (32, 16 * 25), "g": (10, 32)}
    t = [numpy_helper.from_array((rng.normal(0.1, 1, s) / np.sqrt(np.prod(s[1:]))).astype(np.float32), n + ".w") for n, s in shapes.items()]
    t += [numpy_helper.from_array(rng.normal(0, 0.2, s[0]).astype(np.float32), n + ".b") for n, s in shapes.items()]
    t += [numpy_helper.from_array(np.float32(v), n) for n, v in (("lo", 0), ("hi", 6))]
    conv = lambda x, n, pad: helper.make_node("Conv", [x, n + ".w", n + ".b"], [n], name="n." + n, pads=[pad] * 4)
    nodes = [
        conv("x", "a", 1), helper.make_node("Clip", ["a", "lo", "hi"], ["ac"], name="n.ac"),
        conv("ac", "b", 1), conv("ac", "c", 0), helper.make_node("Add", ["b", "c"], ["s"], name="n.s"),
        helper.make_node("Relu", ["s"], ["sr"], name="n.sr"),
        helper.make_node("AveragePool", ["sr"], ["p"], name="n.p", kernel_shape=[3, 3], strides=[3, 3]),
        helper.make_node("Flatten", ["p"], ["v"], name="n.v"),
        helper.make_node("Gemm", ["v", "f.w", "f.b"], ["h"], name="n.h", transB=1), helper.make_node("Relu", ["h"], ["hr"], name="n.hr"),
        helper.make_node("Gemm", ["hr", "g.w", "g.b"], ["y"], name="n.y", transB=1),
    ]
    graph = helper.make_graph(nodes, "small", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 16, 16])],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 10])], t)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


class Reader(CalibrationDataReader):
    def __init__(self, name, images):
        self.rows = iter([{name: x} for x in images])

    def get_next(self):
        return next(self.rows, None)


U, S = QuantType.QUInt8, QuantType.QInt8
onnx.save(small(), folder / "small.float")
for net, source, side in (("thin", sys.argv[2], 64), ("small", str(folder / "small.float"), 16)):
    images, prepared = pictures(24, side), str(folder / f"{net}.prepared")
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
    name = onnx.load(prepared).graph.input[0].name
    for form, (act, weight), per_channel in itertools.product(QuantFormat, ((U, S), (S, S), (U, U)), (False, True)):
        kind = "".join("u8" if t == U else "s8" for t in (act, weight))
        file = folder / f"{net}.{form.name}.{kind}.{'channel' if per_channel else 'tensor'}"
        path = f"{file}.onnx"
        quantize_static(prepared, path, Reader(name, images[:12]), quant_format=form, activation_type=act, weight_type=weight,
                        per_channel=per_channel)
        results = []
        for level in (ort.GraphOptimizationLevel.ORT_ENABLE_ALL, ort.GraphOptimizationLevel.ORT_DISABLE_ALL):
            options = ort.SessionOptions()
            options.graph_optimization_level = level
            if form == QuantFormat.QDQ or act == U:
                # Without VNNI products saturate unless told not to; a QGemm of s8·s8 would not load with this.
                options.add_session_config_entry("session.x64quantprecision", "1")
            session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            results.append(np.concatenate([session.run(None, {name: x})[0] for x in images[12:]]))
        images[12:].tofile(f"{file}.in.f32")
        results[0].astype(np.float32).tofile(f"{file}.out.f32")
        results[1].astype(np.float32).tofile(f"{file}.plain.f32")
        print(file.name, (results[0] != results[1]).sum(), sep="\t")
