"""Networks in old and odd spellings, and ONNX Runtime's results of them without optimizations.

    canonical.py make FOLDER     writes NAME.onnx, NAME.npz (x, y) and lists the names
    canonical.py check FOLDER    runs NAME.canonical.onnx and compares
    canonical.py spell MODEL FOLDER   writes a quantized network in other spellings of the same integers
    canonical.py schemas         lists every change of form of ONNX's operators, from the package's own schemas
"""

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, defs, helper, numpy_helper

ort.set_default_logger_severity(4)
TYPES = {np.dtype("f4"): 1, np.dtype("u1"): 2, np.dtype("i1"): 3, np.dtype("i4"): 6, np.dtype("i8"): 7, np.dtype("f2"): 10, np.dtype("f8"): 11, np.dtype("?"): 9}
FOLDER = None
NAMES = []


def run(model, feeds):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def case(name, opset, nodes, x, constants=(), expected=None, domains=(), y_type=TensorProto.FLOAT, x_dims=None, ir=None, inputs=()):
    """One network from `x` to `y`; `expected` where ONNX Runtime does not run the file itself."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TYPES[x.dtype], x_dims or x.shape), *inputs],
        [helper.make_tensor_value_info("y", y_type, None)],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in dict(constants).items()],
    )
    imports = [helper.make_opsetid("", opset), *[helper.make_opsetid(d, 1) for d in domains]]
    model = helper.make_model(graph, opset_imports=imports, ir_version=ir or (3 if opset < 9 else 8))
    if not inputs and (ir or 4) < 4 or (ir is None and opset < 9):
        # IR version 3: initializers are inputs too.
        for n, v in dict(constants).items():
            v = np.asarray(v)
            graph_input = helper.make_tensor_value_info(n, TYPES[v.dtype], v.shape)
            model.graph.input.append(graph_input)
    if expected is None:
        expected = run(model, {"x": x})[0]
    onnx.save(model, FOLDER / f"{name}.onnx")
    np.savez(FOLDER / f"{name}.npz", x=x, y=np.asarray(expected))
    NAMES.append(name)


def node(op, inputs, outputs=("y",), domain="", **attributes):
    return helper.make_node(op, list(inputs), list(outputs), domain=domain, **attributes)


def opsets(rng):
    """Each step of the table, from the version before it."""
    f = lambda *shape: rng.normal(size=shape).astype(np.float32)
    x = f(1, 3, 6, 8)
    i = lambda *v: np.array(v, np.int64)
    c = case
    c("relu_consumed", 1, [node("Relu", ["x"], consumed_inputs=[0])], x, expected=np.maximum(x, 0))
    c("cast_name", 1, [node("Cast", ["x"], ["h"], to="FLOAT16"), node("Cast", ["h"], to="FLOAT")], x, expected=x)
    c("reshape_attribute", 1, [node("Reshape", ["x"], shape=[0, -1])], x, expected=x.reshape(1, -1))
    c("concat_default_axis", 1, [node("Concat", ["x", "x"])], x, expected=np.concatenate([x, x], 1))
    c("selu_1", 1, [node("Selu", ["x"])], x, expected=1.0507 * np.where(x > 0, x, 1.6732 * (np.exp(x) - 1)))
    c("tile_1", 1, [node("Tile", ["x", "t", "a"])], x, {"t": i(2)[0], "a": i(3)[0]}, expected=np.tile(x, (1, 1, 1, 2)))
    c("pad_1", 1, [node("Pad", ["x"], paddings=[0, 0, 1, 2, 0, 0, 0, 1], value=0.5)], x, expected=np.pad(x, ((0, 0), (0, 0), (1, 0), (2, 1)), constant_values=0.5))
    b = f(3)
    c("add_axis", 6, [node("Add", ["x", "b"], broadcast=1, axis=1)], x, {"b": b}, expected=x + b[:, None, None])
    b6 = f(6)
    c("mul_axis_middle", 6, [node("Mul", ["x", "b"], broadcast=1, axis=2)], x, {"b": b6}, expected=x * b6[:, None])
    c("sub_suffix", 6, [node("Sub", ["x", "b"], broadcast=1)], x, {"b": (b8 := f(8))}, expected=x - b8)
    c("prelu_channels", 6, [node("PRelu", ["x", "b"])], x, {"b": b}, expected=np.where(x < 0, x * b[:, None, None], x))
    w, g = f(5, 144), f(5)
    c("gemm_broadcast", 6, [node("Reshape", ["x", "s"], ["f"]), node("Gemm", ["f", "w", "g"], broadcast=1, transB=1)], x, {"w": w, "g": g, "s": i(1, 144)}, expected=x.reshape(1, -1) @ w.T + g)
    bn = dict(s=f(3), b=f(3), m=f(3), v=np.abs(f(3)) + 0.5)
    normal = lambda p, spread: (x - spread(p["m"])) / np.sqrt(spread(p["v"]) + 1e-5) * spread(p["s"]) + spread(p["b"])
    c("batchnorm_1", 5, [node("BatchNormalization", ["x", *bn], consumed_inputs=[0, 0, 0, 1, 1], is_test=1)], x, bn, expected=normal(bn, lambda p: p[:, None, None]))
    c("batchnorm_7", 7, [node("BatchNormalization", ["x", *bn])], x, bn)
    c("batchnorm_8_five_outputs", 8, [node("BatchNormalization", ["x", *bn], ["y", "a1", "a2", "a3", "a4"])], x, bn)
    each = {k: np.abs(f(3, 6, 8)) + 0.1 for k in bn}
    c("batchnorm_per_place", 7, [node("BatchNormalization", ["x", *bn], spatial=0)], x, each, expected=normal(each, lambda p: p))
    c("dropout_6", 6, [node("Dropout", ["x"], is_test=1, ratio=0.3)], x, expected=x)
    c("dropout_7_mask", 7, [node("Dropout", ["x"], ["y", "mask"], ratio=0.3)], x)
    c("dropout_10", 10, [node("Dropout", ["x"], ["d"], ratio=0.3), node("Relu", ["d"])], x)
    for version in (7, 9):
        scales = {"u": np.array([1, 1, 2, 3], np.float32)}
        for mode in ("nearest", "linear"):
            if version == 7:
                c(f"upsample_7_{mode}", 7, [node("Upsample", ["x"], mode=mode, scales=[1.0, 1.0, 2.0, 3.0])], x)
            else:
                c(f"upsample_9_{mode}", 9, [node("Upsample", ["x", "u"], mode=mode)], x, scales)
    c("upsample_fraction", 9, [node("Upsample", ["x", "u"], mode="nearest")], x, {"u": np.array([1, 1, 1.5, 2.25], np.float32)})
    c("upsample_1", 1, [node("Upsample", ["x"], mode="nearest", height_scale=2.0, width_scale=2.0)], x, expected=x.repeat(2, 2).repeat(2, 3))
    for name, s in (("up", [1, 1, 2, 2]), ("down", [1, 1, 0.5, 0.5]), ("odd", [1, 1, 0.7, 0.6]), ("fraction", [1, 1, 1.3, 2.6])):
        for mode in ("nearest", "linear"):
            c(f"resize_10_{name}_{mode}", 10, [node("Resize", ["x", "u"], mode=mode)], x, {"u": np.array(s, np.float32)})
    c("resize_11_sizes", 11, [node("Resize", ["x", "r", "r", "z"], mode="linear", coordinate_transformation_mode="align_corners")], x, {"r": np.zeros(0, np.float32), "z": i(1, 3, 9, 5)})
    c("slice_1", 9, [node("Slice", ["x"], starts=[1, -5], ends=[100, -1], axes=[1, 3])], x)
    c("slice_1_no_axes", 1, [node("Slice", ["x"], starts=[0, 1], ends=[1, 3])], x, expected=x[0:1, 1:3])
    c("topk_1", 9, [node("TopK", ["x"], ["y", "j"], k=3, axis=3)], x)
    c("clip_6", 6 + 1, [node("Clip", ["x"], min=-0.5, max=0.25)], x)
    c("clip_6_one_bound", 9, [node("Clip", ["x"], min=-0.5)], x)
    for mode in ("constant", "reflect", "edge"):
        c(f"pad_2_{mode}", 9, [node("Pad", ["x"], pads=[0, 0, 1, 2, 0, 0, 3, 1], mode=mode)], x)
    for op in ("Softmax", "LogSoftmax", "Hardmax"):
        for axis in (0, 1, 2, 3):
            c(f"{op.lower()}_11_axis_{axis}", 11, [node(op, ["x"], axis=axis)], x)
        c(f"{op.lower()}_default", 9, [node(op, ["x"])], f(2, 3, 2, 2))
    flat = f(4, 7)
    c("softmax_rank_2", 11, [node("Softmax", ["x"], axis=1)], flat)
    c("softmax_channels_of_points", 11, [node("GlobalAveragePool", ["x"], ["p"]), node("Softmax", ["p"], axis=1)], x)
    c("softmax_13", 13, [node("Softmax", ["x"], axis=1)], x)
    for op in ("Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "LogSumExp", "SumSquare"):
        c(f"reduce_{op.lower()}_11", 11, [node(f"Reduce{op}", ["x"], axes=[2, 3], keepdims=0)], x)
        c(f"reduce_{op.lower()}_all", 12, [node(f"Reduce{op}", ["x"])], x)
    c("reduce_mean_17", 17, [node("ReduceMean", ["x"], axes=[-1, -2])], x)
    c("reduce_mean_18", 18, [node("ReduceMean", ["x", "a"], keepdims=1)], x, {"a": i(2, 3)})
    c("squeeze_11", 11, [node("ReduceMean", ["x"], ["m"], axes=[2, 3]), node("Squeeze", ["m"], axes=[2, 3])], x)
    c("squeeze_no_axes", 11, [node("ReduceMean", ["x"], ["m"], axes=[2, 3]), node("Squeeze", ["m"])], f(2, 3, 4, 4), x_dims=["n", 3, 4, 4])
    c("unsqueeze_11", 11, [node("Unsqueeze", ["x"], axes=[0, 5])], x)
    c("split_11", 11, [node("Split", ["x"], ["a", "b"], axis=3, split=[3, 5]), node("Relu", ["b"])], x)
    c("split_equal_11", 11, [node("Split", ["x"], ["a", "b"], axis=3), node("Add", ["a", "b"])], x)
    c("split_2", 2, [node("Split", ["x"], ["a", "b"], axis=2), node("Sub", ["a", "b"])], x, expected=x[:, :, :3] - x[:, :, 3:])
    c("lrn", 7, [node("LRN", ["x"], size=3, alpha=0.01, beta=0.6, bias=1.5)], x)
    c("global_lp_1", 1, [node("GlobalLpPool", ["x"], p=2.0)], x, expected=np.sqrt((x**2).sum((2, 3), keepdims=True)))
    c("global_lp_2", 9, [node("GlobalLpPool", ["x"], p=3)], x)
    c("constant_of_shape", 9, [node("ConstantOfShape", ["s"], ["k"], value=numpy_helper.from_array(np.array([2.5], np.float32))), node("Add", ["x", "k"])], x, {"s": i(3, 1, 8)})
    c("maxpool_8", 8, [node("MaxPool", ["x"], kernel_shape=[2, 2])], x)
    c("averagepool_7", 7, [node("AveragePool", ["x"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)], x)
    c("image_scaler", 1, [node("ImageScaler", ["x"], scale=0.5, bias=[1.0, 2.0, 3.0])], x, expected=x * 0.5 + np.array([1, 2, 3], np.float32)[:, None, None])
    grid = np.clip(f(1, 4, 5, 2), -1, 1)
    c("grid_sample_16", 16, [node("GridSample", ["x", "g"], mode="bilinear")], x, {"g": grid})
    groups = np.concatenate([x, x], 1).reshape(1, 3, 2, 6, 8)
    centred = groups - groups.mean((2, 3, 4), keepdims=True)
    scale, bias = f(3), f(3)
    normal = centred / np.sqrt(groups.var((2, 3, 4), keepdims=True) + 1e-4) * scale[:, None, None, None] + bias[:, None, None, None]
    c("group_norm_18", 18, [node("Concat", ["x", "x"], ["x6"], axis=1), node("GroupNormalization", ["x6", "s", "b"], num_groups=3, epsilon=1e-4)], x, {"s": scale, "b": bias}, expected=normal.reshape(1, 6, 6, 8))
    for version in (13, 17, 19, 21, 23, 25, 28):
        c(f"mixed_{version}", version, [node("HardSigmoid", ["x"], ["h"]), node("Mul", ["x", "h"], ["m"]), node("Pad", ["m", "p"], ["q"]), node("MaxPool", ["q"], ["l"], kernel_shape=[2, 2]), node("Reshape", ["l", "s"])], x, {"p": i(0, 0, 1, 1, 0, 0, 1, 1), "s": i(0, -1)})
    c("gelu_20", 20, [node("Gelu", ["x"], approximate="tanh")], x)
    c("mish_18", 18, [node("Mish", ["x"])], x)


def folding(rng):
    """Sizes that are computed, constants that are."""
    f = lambda *shape: rng.normal(size=shape).astype(np.float32)
    i = lambda *v: np.array(v, np.int64)
    x = f(2, 3, 4, 6)
    open_batch = ["n", 3, 4, 6]
    case("flatten_by_shape", 13, [node("Shape", ["x"], ["s"]), node("Gather", ["s", "zero"], ["n"]), node("Unsqueeze", ["n", "a0"], ["n1"]), node("Concat", ["n1", "m1"], ["t"], axis=0), node("Reshape", ["x", "t"])], x, {"zero": i(0)[0], "a0": i(0), "m1": i(-1)}, x_dims=open_batch)
    case("upsample_by_shape", 13, [node("Shape", ["x"], ["s"]), node("Slice", ["s", "two", "four"], ["hw"]), node("Cast", ["hw"], ["f"], to=1), node("Mul", ["f", "k"], ["g"]), node("Cast", ["g"], ["hw2"], to=7), node("Slice", ["s", "z", "two"], ["nc"]), node("Concat", ["nc", "hw2"], ["sz"], axis=0), node("Resize", ["x", "", "", "sz"], mode="nearest")], x, {"two": i(2), "four": i(4), "z": i(0), "k": np.float32(2)}, x_dims=open_batch)
    case("shape_end", 15, [node("Shape", ["x"], ["s"], start=0, end=2), node("Concat", ["s", "m"], ["t"], axis=0), node("Reshape", ["x", "t"])], x, {"m": i(-1)}, x_dims=open_batch)
    branch = lambda op: helper.make_graph([node(op, ["m"], ["o_" + op])], op, [], [helper.make_tensor_value_info("o_" + op, 1, None)])
    case("if_of_shape", 13, [node("GlobalAveragePool", ["x"], ["m"]), node("Shape", ["m"], ["s"]), node("Gather", ["s", "two"], ["d"]), node("Equal", ["d", "one"], ["b"]), node("If", ["b"], ["k"], then_branch=branch("Neg"), else_branch=branch("Abs")), node("Relu", ["k"])], x, {"two": i(2)[0], "one": i(1)[0]}, x_dims=open_batch)
    w = f(5, 3)
    case("weights_by_transpose", 13, [node("GlobalAveragePool", ["x"], ["p"]), node("Flatten", ["p"], ["f"]), node("Transpose", ["w"], ["wt"], perm=[1, 0]), node("Mul", ["wt", "two"], ["w2"]), node("MatMul", ["f", "w2"])], x, {"w": w, "two": np.float32(2)}, x_dims=open_batch)
    case("identity_output", 13, [node("Relu", ["x"], ["r"]), node("Identity", ["r"])], x, x_dims=open_batch)
    case("identity_of_input", 13, [node("Identity", ["x"])], x)
    case("expand_zeros", 13, [node("Shape", ["b"], ["s"]), node("ConstantOfShape", ["s"], ["k"]), node("Add", ["x", "k"])], x, {"b": f(3, 1, 1)})
    case("constants_of_all_kinds", 13, [node("Constant", [], ["a"], value_float=1.5), node("Constant", [], ["b"], value_floats=[1.0] * 6), node("Constant", [], ["c"], value_ints=[0, -1]), node("Add", ["x", "a"], ["d"]), node("Mul", ["d", "b"], ["e"]), node("Reshape", ["e", "c"])], x)
    case("initializers_are_inputs", 8, [node("Conv", ["x", "w"], pads=[1, 1, 1, 1])], x, {"w": f(4, 3, 3, 3)}, ir=3)
    case("range_where_reduce", 13, [node("Shape", ["x"], ["s"]), node("Slice", ["s", "one", "four"], ["s3"]), node("ReduceProd", ["s3"], ["p"], keepdims=1), node("Concat", ["m1", "p"], ["t"], axis=0), node("Reshape", ["x", "t"])], x, {"one": i(1), "four": i(4), "m1": i(-1)}, x_dims=open_batch)


def layouts(rng):
    f = lambda *shape: rng.normal(size=shape).astype(np.float32)
    x = f(1, 20, 24, 3)
    to, back = dict(perm=[0, 3, 1, 2]), dict(perm=[0, 2, 3, 1])
    w = f(4, 3, 3, 3)
    case("nhwc_conv", 13, [node("Transpose", ["x"], ["t"], **to), node("Conv", ["t", "w"], ["c"], pads=[1, 1, 1, 1]), node("Transpose", ["c"], ["u"], **back), node("Add", ["u", "b"], ["a"]), node("Relu", ["a"], ["r"]), node("ReduceMean", ["r"], axes=[1, 2], keepdims=0)], x, {"w": w, "b": f(4)})
    case("nhwc_softmax_slice", 13, [node("Transpose", ["x"], ["t"], **to), node("Conv", ["t", "w"], ["c"]), node("Transpose", ["c"], ["u"], **back), node("Slice", ["u", "s", "e", "ax"], ["l"]), node("Softmax", ["l"], axis=-1)], x, {"w": w, "s": np.array([2, 0]), "e": np.array([9, 3]), "ax": np.array([1, 3])})
    case("nhwc_resize_prelu", 13, [node("Transpose", ["x"], ["t"], **to), node("Conv", ["t", "w"], ["c"]), node("Transpose", ["c"], ["u"], **back), node("PRelu", ["u", "k"], ["p"]), node("Resize", ["p", "", "sc"], mode="nearest")], x, {"w": w, "k": f(1, 1, 4), "sc": np.array([1, 2, 2, 1], np.float32)})
    case("nhwc_only", 13, [node("Flatten", ["x"], ["f"]), node("Gemm", ["f", "w"])], x, {"w": f(20 * 24 * 3, 5)})
    case("uint8_cast", 13, [node("Cast", ["x"], ["f"], to=1), node("Transpose", ["f"], ["t"], **to), node("Mul", ["t", "k"], ["m"]), node("Conv", ["m", "w"])], rng.integers(0, 256, (1, 20, 24, 3)).astype(np.uint8), {"w": w, "k": np.float32(1 / 255)})
    case("double_all", 13, [node("Mul", ["x", "k"], ["m"]), node("Softmax", ["m"])], rng.normal(size=(1, 3, 8, 8)), {"k": np.float64(1.5)}, y_type=TensorProto.DOUBLE)
    case("int64_output", 13, [node("GlobalAveragePool", ["x"], ["p"]), node("ArgMax", ["p"], axis=1)], f(1, 7, 5, 5), y_type=TensorProto.INT64)


def quantization(rng):
    f = lambda *shape: rng.normal(size=shape).astype(np.float32)
    x = f(1, 3, 12, 10)
    s, z = np.float32(0.03), np.uint8(128)
    w = f(8, 3, 3, 3)
    ws = (np.abs(w).max((1, 2, 3)) / 127).astype(np.float32)
    wq = np.clip(np.rint(w / ws[:, None, None, None]), -127, 127).astype(np.int8)
    s2, z2 = np.float32(0.05), np.uint8(0)
    base = {"s": s, "z": z, "ws": ws, "wz": np.zeros(8, np.int8), "s2": s2, "z2": z2}
    q = lambda a, b, sc="s", ze="z", **k: node("QuantizeLinear", [a, sc, ze] if ze else [a, sc], [b], **k)
    d = lambda a, b, sc="s", ze="z", **k: node("DequantizeLinear", [a, sc, ze] if ze else [a, sc], [b], **k)
    conv = [node("Conv", ["d", "wd"], ["c"], pads=[1, 1, 1, 1]), node("Relu", ["c"], ["r"])]
    tail = [q("r", "q2", "s2", "z2"), d("q2", "y", "s2", "z2")]
    head = [q("x", "q"), d("q", "d")]
    case("plain_qdq", 13, head + [d("wq", "wd", "ws", "wz", axis=0)] + conv + tail, x, {**base, "wq": wq})
    case("qdq_on_float_weights", 13, head + [q("w", "wq", "ws", "wz", axis=0), d("wq", "wd", "ws", "wz", axis=0)] + conv + tail, x, {**base, "w": w})
    case("weights_of_shape_1", 13, head + [q("w", "wq", "w1", "wz1"), d("wq", "wd", "w1", "wz1")] + conv + tail, x, {**base, "w": w, "w1": np.array([0.02], np.float32), "wz1": np.array([0], np.int8)})
    case("zero_points_missing", 13, [q("x", "q", "s", None), d("q", "d", "s", None), d("wq", "wd", "ws", None, axis=0)] + conv + [q("r", "q2", "s2", None), d("q2", "y", "s2", None)], np.abs(x), {**base, "wq": wq})
    case("zero_points_computed", 13, [node("Cast", ["zi"], ["zc"], to=2), node("Identity", ["s"], ["si"]), q("x", "q", "si", "zc"), node("Cast", ["q"], ["qc"], to=2), d("qc", "d", "si", "zc"), node("ConstantOfShape", ["n8"], ["wz8"], value=numpy_helper.from_array(np.array([0], np.int8))), d("wq", "wd", "ws", "wz8", axis=0)] + conv + tail, x, {**base, "wq": wq, "zi": np.int32(128), "n8": np.array([8])})
    case("com_microsoft", 17, [node("QuantizeLinear", ["x", "s", "z"], ["q"], domain="com.microsoft"), node("DequantizeLinear", ["q", "s", "z"], ["d"], domain="com.microsoft"), node("DequantizeLinear", ["wq", "ws", "wz"], ["wd"], domain="com.microsoft", axis=0)] + conv + [node("QuantizeLinear", ["r", "s2", "z2"], ["q2"], domain="com.microsoft"), node("DequantizeLinear", ["q2", "s2", "z2"], ["y"], domain="com.microsoft")], x, {**base, "wq": wq}, domains=["com.microsoft"])
    case("clip_between", 14, [q("x", "q"), node("Clip", ["q", "lo", "hi"], ["qc"]), d("qc", "d"), node("Clip", ["wq", "wlo", "whi"], ["wc"]), d("wc", "wd", "ws", "wz", axis=0)] + conv + [q("r", "q2", "s2", "z2"), node("Clip", ["q2", "z2", "hi"], ["q2c"]), d("q2c", "y", "s2", "z2")], x, {**base, "wq": wq, "lo": np.uint8(20), "hi": np.uint8(37), "wlo": np.int8(-100), "whi": np.int8(100)})
    case("relu_between", 14, [q("x", "q", "s", "zs"), d("q", "d", "s", "zs"), d("wq", "wd", "ws", "wz", axis=0), conv[0], q("c", "q2", "s2", "zs"), node("Relu", ["q2"], ["q2r"]), d("q2r", "y", "s2", "zs")], x, {**base, "wq": wq, "zs": np.int8(0)})
    case("integers_moved", 13, [q("x", "q"), node("Transpose", ["q"], ["qt"], perm=[0, 1, 3, 2]), d("qt", "d"), d("wq", "wd", "ws", "wz", axis=0)] + conv + [q("r", "q2", "s2", "z2"), node("MaxPool", ["q2"], ["qm"], kernel_shape=[2, 2]), node("Concat", ["qm", "qm"], ["qq"], axis=1), node("Flatten", ["qq"], ["qf"]), d("qf", "y", "s2", "z2")], x, {**base, "wq": wq})
    case("same_grid_again", 13, head + [d("wq", "wd", "ws", "wz", axis=0)] + conv + [q("r", "q2", "s2", "z2"), d("q2", "d2", "s2", "z2"), node("GlobalAveragePool", ["d2"], ["p"]), q("p", "q3", "s2", "z2"), d("q3", "d3", "s2", "z2"), node("Flatten", ["d3"], ["fl"]), q("fl", "q4", "s2", "z2"), d("q4", "y", "s2", "z2")], x, {**base, "wq": wq})
    wt = f(16, 5)
    wts = (np.abs(wt).max(0) / 127).astype(np.float32)
    wtq = np.rint(wt.T / wts[:, None]).astype(np.int8)
    case("weights_turned", 13, head + [d("wq", "wd", "ws", "wz", axis=0)] + conv + [q("r", "q2", "s2", "z2"), d("q2", "d2", "s2", "z2"), node("GlobalAveragePool", ["d2"], ["p"]), q("p", "q3", "s", "z0"), d("q3", "d3", "s", "z0"), node("Flatten", ["d3"], ["fl"]), node("Identity", ["fl"], ["f2"]), d("lq", "ld", "ls", "lz", axis=0), node("Transpose", ["ld"], ["lt"], perm=[1, 0]), node("MatMul", ["f2", "lt"], ["m"]), q("m", "q5", "s", "z"), d("q5", "y")], x, {**base, "wq": wq, "z0": np.uint8(0), "lq": wtq[:, :8].copy(), "ls": wts, "lz": np.zeros(5, np.int8)})
    one = lambda v, t: np.array([v], t)
    case("qlinear_operators", 13, [q("x", "q"), node("QLinearConv", ["q", "s", "z", "wq", "ws", "wz", "s2", "z2", "b"], ["q2"], pads=[1, 1, 1, 1]), node("QLinearAdd", ["q2", "s2", "z2", "q2", "s2", "z2", "s3", "z2"], ["q3"], domain="com.microsoft"), node("QLinearConcat", ["s2", "z2", "q2", "s2", "z2", "q3", "s3", "z2"], ["q4"], domain="com.microsoft", axis=1), node("QLinearAveragePool", ["q4", "s2", "z2", "s2", "z2"], ["q5"], domain="com.microsoft", kernel_shape=[2, 2]), node("QLinearLeakyRelu", ["q5", "s2", "z2", "s2", "z"], ["q6"], domain="com.microsoft", alpha=0.1), node("QLinearGlobalAveragePool", ["q6", "s2", "z", "s3", "z2"], ["q7"], domain="com.microsoft"), d("q7", "d7", "s3", "z2"), node("Flatten", ["d7"])], x, {**base, "wq": wq, "b": rng.integers(-500, 500, 8).astype(np.int32), "s3": np.float32(0.08)}, domains=["com.microsoft"])
    case("qlinear_more", 13, [q("x", "q"), node("QLinearSigmoid", ["q", "s", "z", "g", "z2"], ["q1"], domain="com.microsoft"), node("QLinearMul", ["q", "s", "z", "q1", "g", "z2", "s", "z"], ["q2"], domain="com.microsoft"), node("QLinearGlobalAveragePool", ["q2", "s", "z", "s", "z"], ["p"], domain="com.microsoft"), node("Flatten", ["p"], ["q3"]), node("QGemm", ["q3", "s", "z", "aq", "as", "az", "", "s2", "z"], ["q4"], domain="com.microsoft", transB=1), node("QLinearSoftmax", ["q4", "s2", "z", "g", "z2"], ["q5"], domain="com.microsoft", opset=13, axis=-1), d("q5", "y", "g", "z2")], x, {**base, "g": np.float32(1 / 256), "aq": wtq[:, :3].copy(), "as": wts, "az": np.zeros(5, np.int8)}, domains=["com.microsoft"])
    case("qlinear_matmul", 13, [q("x", "q"), node("QLinearGlobalAveragePool", ["q", "s", "z", "s", "z"], ["p"], domain="com.microsoft"), node("Flatten", ["p"], ["pf"]), node("QLinearMatMul", ["pf", "s", "z", "aq", "as", "az", "s2", "z"], ["m"]), d("m", "y", "s2", "z")], x, {**base, "aq": wtq[:, :3].T.copy(), "as": wts, "az": np.zeros(5, np.int8)}, domains=["com.microsoft"])
    case("qlinear_channels_last", 13, [q("x", "q"), node("Transpose", ["q"], ["qt"], perm=[0, 2, 3, 1]), node("QLinearGlobalAveragePool", ["qt", "s", "z", "s", "z"], ["p"], domain="com.microsoft", channels_last=1), d("p", "y")], x, base, domains=["com.microsoft"])
    half = lambda v: np.asarray(v, np.float16)
    case("float16_scales", 19, [node("Cast", ["x"], ["xh"], to=10), q("xh", "q", "sh"), d("q", "dh", "sh"), node("Cast", ["dh"], ["d"], to=1), d("wq", "wd", "ws", "wz", axis=0)] + conv + tail, x, {**base, "wq": wq, "sh": half(0.03)})
    xi = rng.integers(-128, 128, (1, 20, 24, 3)).astype(np.int8)
    case("integer_ends", 13, [node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]), d("t", "d", "s", "zi"), d("wq", "wd", "ws", "wz", axis=0)] + conv + [q("r", "q2", "s2", "zi"), node("MaxPool", ["q2"], ["m"], kernel_shape=[20, 24]) , node("Squeeze", ["m", "ax"])], xi, {**base, "wq": wq, "zi": np.int8(-3), "ax": np.array([2, 3])}, y_type=TensorProto.INT8)
    packed = helper.make_tensor("w4", TensorProto.INT4, [8, 3, 3, 3], rng.integers(-8, 8, 216).tolist())
    four = [helper.make_node("Constant", [], ["w4"], value=packed)]
    case("four_bit_weights", 21, head + four + [d("w4", "wd", "ws", "", axis=0)] + conv + tail, x, base, ir=10)


def make(folder):
    global FOLDER
    FOLDER = Path(folder)
    for seed, part in enumerate((opsets, folding, layouts, quantization)):
        part(np.random.default_rng(seed))
    print("\n".join(NAMES))


def check(folder):
    bad = 0
    for path in sorted(Path(folder).glob("*.canonical.onnx")):
        name = path.name.removesuffix(".canonical.onnx")
        data = np.load(Path(folder) / f"{name}.npz")
        model = onnx.load(path)
        # ONNX Runtime 1.32 has no kernels of the newest versions of some operators; nothing in them changed but types.
        for o in model.opset_import:
            o.version = min(o.version, 21)
        onnx.checker.check_model(model)
        wanted = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
        x, y = data["x"], data["y"]
        original = onnx.load(Path(folder) / f"{name}.onnx")
        first = entry(original)
        if first is not None and np.issubdtype(x.dtype, np.integer):
            x = (x.astype(np.float32) - first[1]) * first[0]
        x = x.astype(np.float32)
        if len(wanted) == 4 and wanted[1:] != list(x.shape[1:]):
            x = x.transpose(0, 3, 1, 2)
        got = run(model, {model.graph.input[0].name: x})[0]
        last = leave(original)
        if last is not None and np.issubdtype(y.dtype, np.integer):
            y = (y.astype(np.float32) - last[1]) * last[0]
        y = y.astype(np.float64)
        scale = max(1.0, np.abs(y).max())
        ok = got.shape == y.shape and np.abs(got - y).max() <= 2e-6 * scale
        if not ok:
            # Integers of two computations may differ by a step where a sum is a tie.
            tolerated = "q" in name and got.shape == y.shape and np.mean(got != y) < 0.01
            # Half precision is computed in float32: a step of the input may be one of the output.
            tolerated |= name.startswith("float16") and np.abs(got - y).max() < 0.11 and np.mean(np.abs(got - y) > 1e-6) < 0.1
            far = np.abs(got - y).max() if got.shape == y.shape else f"shape {got.shape}, {y.shape} wanted"
            print(f"{name}: off by {far}{' (tolerated)' if tolerated else ''}")
            bad += not tolerated
    print(f"{bad} wrong")
    return bad


def entry(model):
    """Scale and zero point of an integer input that is dequantized."""
    values = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for n in model.graph.node:
        if n.op_type == "DequantizeLinear" and model.graph.input[0].type.tensor_type.elem_type in (2, 3):
            return values[n.input[1]].astype(np.float32), values[n.input[2]].astype(np.float32)
    return None


def leave(model):
    values = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    if model.graph.output[0].type.tensor_type.elem_type in (2, 3):
        last = [n for n in model.graph.node if n.op_type == "QuantizeLinear"][-1]
        return values[last.input[1]].astype(np.float32), values[last.input[2]].astype(np.float32)
    return None


def spell(path, folder):
    """Rewrites a QDQ network as other tools write it."""
    plain = onnx.load(path)
    value = {t.name: numpy_helper.to_array(t) for t in plain.graph.initializer}
    made = {}

    def new(name, change):
        model = onnx.ModelProto()
        model.CopyFrom(plain)
        nodes, extra = [], []
        for i, n in enumerate(model.graph.node):
            nodes.extend(change(i, n, extra))
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        model.graph.initializer.extend(extra)
        used = {i for n in model.graph.node for i in n.input}
        kept = [t for t in model.graph.initializer if t.name in used]
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)
        onnx.checker.check_model(model)
        onnx.save(model, Path(folder) / f"{name}.onnx")
        print(name)

    def float_weights(i, n, extra):
        if n.op_type != "DequantizeLinear" or n.input[0] not in value or value[n.input[0]].dtype != np.int8:
            return [n]
        q, s = value[n.input[0]], value[n.input[1]]
        axis = next((a.i for a in n.attribute), 1)
        real = q * (s.reshape([-1 if d == axis else 1 for d in range(q.ndim)]) if s.size > 1 else s)
        extra.append(numpy_helper.from_array(real.astype(np.float32), f"{n.input[0]}.float"))
        attributes = {"axis": axis} if s.size > 1 else {}
        quantize = node("QuantizeLinear", [f"{n.input[0]}.float", *n.input[1:]], [f"{n.input[0]}.again"], **attributes)
        return [quantize, node("DequantizeLinear", [f"{n.input[0]}.again", *n.input[1:]], n.output, **attributes)]

    def microsoft(i, n, extra):
        if n.op_type.endswith("eLinear"):
            n.domain = "com.microsoft"
        return [n]

    def clipped(i, n, extra):
        if n.op_type != "QuantizeLinear":
            return [n]
        q = n.output[0]
        kind = value[n.input[2]].dtype
        low, high = np.iinfo(kind).min, np.iinfo(kind).max
        extra.extend([numpy_helper.from_array(kind.type(low), f"{q}.low"), numpy_helper.from_array(kind.type(high), f"{q}.high")])
        n.output[0] = f"{q}.open"
        return [n, node("Clip", [f"{q}.open", f"{q}.low", f"{q}.high"], [q])]

    def routes(i, n, extra):
        """Parameters of shape [1], by Constant, Identity and Cast; a Cast of integers to their own type."""
        if not n.op_type.endswith("eLinear") or value[n.input[1]].size > 1:
            return [n]
        before, after, kind = [], [], TYPES[value[n.input[2]].dtype]
        for at in (1, 2):
            v, name = value[n.input[at]].reshape(1), f"{n.output[0]}.param{at}"
            if i % 3 == 0:
                before.append(node("Constant", [], [name], value=numpy_helper.from_array(v)))
            elif i % 3 == 1:
                extra.append(numpy_helper.from_array(v, f"{name}.source"))
                before.append(node("Identity", [f"{name}.source"], [name]))
            else:
                extra.append(numpy_helper.from_array(v.astype(np.float64 if at == 1 else np.int64), f"{name}.wide"))
                before.append(node("Cast", [f"{name}.wide"], [name], to=TYPES[v.dtype]))
            n.input[at] = name
        if n.op_type == "QuantizeLinear":
            q = n.output[0]
            n.output[0] = f"{q}.raw"
            after.append(node("Cast", [f"{q}.raw"], [q], to=kind))
        return before + [n] + after

    maker = {o: n for n in plain.graph.node for o in n.output}
    reads = {}
    for n in plain.graph.node:
        for i in n.input:
            reads.setdefault(i, []).append(n)

    def operators(i, n, extra):
        """QLinearConv where a quantized Conv is quantized again at once."""
        follow = reads.get(n.output[0], [])
        if n.op_type == "QuantizeLinear" and maker.get(n.input[0]) is not None and maker[n.input[0]].op_type == "Conv" and len(reads[n.input[0]]) == 1:
            return []
        if n.op_type != "Conv" or len(follow) != 1 or follow[0].op_type != "QuantizeLinear":
            return [n]
        x, w = maker[n.input[0]], maker[n.input[1]]
        inputs = [*x.input, *w.input, *follow[0].input[1:]]
        if len(n.input) > 2:
            inputs.append(maker[n.input[2]].input[0])
        new = helper.make_node("QLinearConv", inputs, list(follow[0].output), name=n.name)
        new.attribute.extend(n.attribute)
        return [new]

    def half(as_float16):
        def change(i, n, extra):
            if not n.op_type.endswith("eLinear") or value[n.input[1]].size > 1:
                return [n]
            s = value[n.input[1]].astype(np.float16)
            name = f"{n.output[0]}.half"
            if not as_float16:
                extra.append(numpy_helper.from_array(s.astype(np.float32), name))
                n.input[1] = name
                return [n]
            extra.append(numpy_helper.from_array(s, name))
            n.input[1] = name
            if n.op_type == "QuantizeLinear":
                x = f"{n.output[0]}.x16"
                cast = node("Cast", [n.input[0]], [x], to=10)
                n.input[0] = x
                return [cast, n]
            y = n.output[0]
            n.output[0] = f"{y}.y16"
            return [n, node("Cast", [f"{y}.y16"], [y], to=1)]

        return change

    if not any(o.domain == "com.microsoft" for o in plain.opset_import):
        plain.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    opset = next(o for o in plain.opset_import if o.domain == "")
    opset.version = max(opset.version, 19)
    new("float_weights", float_weights)
    new("com_microsoft", microsoft)
    new("clipped", clipped)
    new("routes", routes)
    new("operators", operators)
    new("rounded_scales", half(False))
    new("float16_scales", half(True))


def form(schema):
    attribute = lambda a: (str(a.type), a.required, str(helper.get_attribute_value(a.default_value)) if a.default_value.name else "")
    return ({k: attribute(a) for k, a in schema.attributes.items()}, [(i.name, str(i.option)) for i in schema.inputs], len(schema.outputs))


def schemas():
    versions = {}
    for s in defs.get_all_schemas_with_history():
        if s.domain == "":
            versions.setdefault(s.name, []).append(s)
    for op, all_of in sorted(versions.items()):
        all_of.sort(key=lambda s: s.since_version)
        print(f"{op} first {all_of[0].since_version}")
        for before, after in zip(all_of, all_of[1:]):
            (a0, i0, o0), (a1, i1, o1) = form(before), form(after)
            # Something is gone, or means something else without being said.
            gone = [n for n in a0 if n not in a1 or (a0[n] != a1[n] and a0[n][2] != a1[n][2])]
            inputs = [n for n, _ in i1[: len(i0)]] != [n for n, _ in i0] or any(opt.endswith("Single") for _, opt in i1[len(i0) :])
            if gone or inputs or o1 < o0 or after.deprecated:
                print(f"{op} changed {after.since_version}")
    print(f"newest {defs.onnx_opset_version()}")


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(sys.argv[2])
    elif sys.argv[1] == "check":
        sys.exit(check(sys.argv[2]) and 1)
    elif sys.argv[1] == "spell":
        spell(sys.argv[2], sys.argv[3])
    else:
        schemas()
