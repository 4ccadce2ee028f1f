#!/usr/bin/env python3
"""Writes ONNX's own backend node cases as models with one float input, and prints a JSON list of them.

A case's data inputs are packed into one float tensor [1, A, B, 1] and cut out again by Slice, Reshape and Cast;
parameters (scales, zero points, weights, bounds) become initializers; the first output is cast to float.
Form `whole` is the case itself. Form `int8` puts QuantizeLinear and DequantizeLinear around a float operator, with a
tolerance that follows from the steps.
"""

import json
import pathlib
import sys
import warnings

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.backend.test.case.node import collect_testcases

warnings.simplefilter("ignore")  # cases of other operators overflow on purpose
OPS = """QuantizeLinear DequantizeLinear QLinearConv ConvInteger Conv BatchNormalization MaxPool AveragePool
GlobalAveragePool Add Relu Gemm Flatten Concat Clip""".split()
INT8 = "Conv MaxPool AveragePool GlobalAveragePool Add Relu Concat Clip".split()
ELEMENTWISE = "Add Relu Clip".split()
EXACT = {np.dtype(t) for t in ("float32", "int8", "uint8", "int32", "int16", "uint16")}  # within f32's 24 bits, as the cases are


class Skip(Exception):
    pass


def pack(arrays):
    """One tensor for all data inputs, and the nodes that cut them out."""
    for a in arrays:
        if a.dtype not in EXACT:
            raise Skip(f"a data input is {a.dtype}")
    flat = np.concatenate([np.asarray(a, np.float32).ravel() for a in arrays])
    rows = -(-flat.size // 4096)
    flat = np.pad(flat, (0, -flat.size % rows)).reshape(1, rows, -1, 1)
    nodes, constants, names = [helper.make_node("Reshape", ["x", "c.flat"], ["flat"])], [("c.flat", np.array([-1]))], []
    at = 0
    for i, a in enumerate(arrays):
        constants += [(f"c.{i}.from", np.array([at])), (f"c.{i}.to", np.array([at + a.size])), (f"c.{i}.shape", np.array(a.shape, np.int64))]
        nodes.append(helper.make_node("Slice", ["flat", f"c.{i}.from", f"c.{i}.to"], [f"slice.{i}"]))
        nodes.append(helper.make_node("Reshape", [f"slice.{i}", f"c.{i}.shape"], [f"data.{i}"]))
        names.append(f"data.{i}")
        if a.dtype != np.float32:
            nodes.append(helper.make_node("Cast", [names[-1]], [f"cast.{i}"], to=helper.np_dtype_to_tensor_dtype(a.dtype)))
            names[-1] = f"cast.{i}"
        at += a.size
    return flat, nodes, constants, names


def build(case, form):
    (node,) = case.model.graph.node
    inputs, outputs = case.data_sets[0]
    if any(not isinstance(a, np.ndarray) for a in (*inputs, *outputs)):
        inputs, outputs = [np.asarray(a) for a in inputs], [np.asarray(a) for a in outputs]
    named = dict(zip([i.name for i in case.model.graph.input], inputs))
    data = [n for n in node.input if n] if node.op_type in ("Add", "Concat") else [node.input[0]]
    expected = outputs[0]
    if expected.dtype not in EXACT:
        raise Skip(f"the output is {expected.dtype}")
    for name, a in named.items():
        if a.dtype not in EXACT and a.dtype != np.int64:
            raise Skip(f"input {name} is {a.dtype}")
    flat, nodes, constants, names = pack([named[n] for n in data])
    constants += [(f"p.{n}", a) for n, a in named.items() if n not in data]
    where = {**{n: f"p.{n}" for n in named}, **dict(zip(data, names)), "": ""}
    atol, rtol = case.atol, case.rtol

    def qdq(value, array, out):
        """uint8, whole range, so that nothing saturates"""
        lo, hi = min(float(array.min()), 0.0), max(float(array.max()), 1e-3)
        s = np.float32((hi - lo) / 254)
        constants.extend([(f"s.{out}", s), (f"z.{out}", np.uint8(round(-lo / s)))])
        nodes.append(helper.make_node("QuantizeLinear", [value, f"s.{out}", f"z.{out}"], [f"q.{out}"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"q.{out}", f"s.{out}", f"z.{out}"], [out]))
        return float(s)

    if form == "int8":
        if node.op_type in ELEMENTWISE and len({named[n].shape for n in data}) == 1:
            named.update({n: named[n].reshape(1, -1, 1, 1) for n in data})
            expected = expected.reshape(1, -1, 1, 1)
            flat, nodes, constants, names = pack([named[n] for n in data])
            constants += [(f"p.{n}", a) for n, a in named.items() if n not in data]
        for n in data:
            if named[n].dtype != np.float32 or named[n].ndim != 4 or named[n].shape[0] != 1:
                raise Skip(f"int8 needs pictures in batches of one, not {named[n].dtype}{list(named[n].shape)}")
        steps = []
        for i, n in enumerate(data):
            steps.append(qdq(where[n], named[n], f"dq.{i}"))
            where[n] = f"dq.{i}"
        atol = sum(steps) / 2
        if node.op_type == "Conv":
            w = named[node.input[1]]
            s = np.float32(np.abs(w).max() / 127)
            constants[:] = [c for c in constants if c[0] != f"p.{node.input[1]}"]
            constants.extend([("w", np.clip(np.round(w / s), -127, 127).astype(np.int8)), ("w.s", s), ("w.z", np.int8(0))])
            nodes.append(helper.make_node("DequantizeLinear", ["w", "w.s", "w.z"], ["w.dq"]))
            where[node.input[1]] = "w.dq"
            terms = w[0].size
            atol = atol * float(np.abs(w).reshape(len(w), -1).sum(1).max()) + float(s) / 2 * terms * float(np.abs(named[data[0]]).max())

    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.name = "case"
    del copy.input[:], copy.output[:]
    copy.input.extend(where[n] for n in node.input)
    copy.output.extend(f"out.{i}" if name else "" for i, name in enumerate(node.output))
    nodes.append(copy)
    result = "out.0"
    if form == "int8":
        atol += qdq(result, expected, "out.dq") * 0.501
        result = "out.dq"
    elif node.op_type == "QuantizeLinear" and expected.dtype in (np.uint8, np.int8):
        # Read back through DequantizeLinear, exactly, the tensor can stay in an int8 region.
        nodes.append(helper.make_node("DequantizeLinear", [result, *copy.input[1:]], ["out.dq"], **{a.name: helper.get_attribute_value(a) for a in node.attribute if a.name in ("axis", "block_size")}))
        result = "out.dq"
        scale = named[node.input[1]]
        zero = named[node.input[2]] if len(node.input) > 2 else np.zeros_like(scale, expected.dtype)
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        if any(a.name == "block_size" and a.i for a in node.attribute):
            size = next(a.i for a in node.attribute if a.name == "block_size")
            scale, zero = [np.repeat(v, size, axis)[tuple(slice(0, d) for d in expected.shape)] for v in (scale, zero)]
        elif scale.size > 1:
            shape = [1] * expected.ndim
            shape[axis] = -1
            scale, zero = scale.reshape(shape), zero.reshape(shape)
        expected = (expected.astype(np.int32) - zero.astype(np.int32)).astype(np.float32) * scale.astype(np.float32)
        atol = 0.0
        rtol = 0.0
    if expected.dtype != np.float32:
        nodes.append(helper.make_node("Cast", [result], ["out.float"], to=TensorProto.FLOAT))
        result = "out.float"
    graph = helper.make_graph(
        nodes,
        case.name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, flat.shape)],
        [helper.make_tensor_value_info(result, TensorProto.FLOAT, expected.shape)],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in constants],
    )
    model = helper.make_model(graph, opset_imports=case.model.opset_import, ir_version=case.model.ir_version)
    onnx.checker.check_model(model, full_check=True)
    return node.op_type, model, flat, expected.astype(np.float32), float(atol), float(rtol)


folder = pathlib.Path(sys.argv[1])
listing, skipped = [], []
for case in collect_testcases():
    if len(case.model.graph.node) != 1 or case.model.graph.node[0].op_type not in OPS:
        continue
    op = case.model.graph.node[0].op_type
    for form in ["whole"] + (["int8"] if op in INT8 else []):
        name = f"{case.name}.{form}"
        try:
            _, model, flat, expected, atol, rtol = build(case, form)
        except Skip as why:
            skipped.append({"name": name, "op": op, "form": form, "why": str(why)})
            continue
        onnx.save(model, folder / f"{name}.onnx")
        flat.tofile(folder / f"{name}.in.f32")
        expected.tofile(folder / f"{name}.out.f32")
        listing.append({"name": name, "op": op, "form": form, "atol": atol, "rtol": rtol})
print(json.dumps({"onnx": onnx.__version__, "cases": listing, "skipped": skipped}))
