#!/usr/bin/env python3
"""Writes small QDQ networks of one random operator each into a folder, with inputs and ONNX Runtime's results, and prints their names.

All scales are powers of two: float arithmetic is exact, and results must be equal bit for bit.

    operators.py FOLDER COUNT
"""

import pathlib
import sys

import numpy as np
import onnx
import onnxruntime as ort

from qdq import Net, run

ort.set_default_logger_severity(4)


def conv_transpose(n, r):
    x = n.quantize("x")
    group = int(r.choice([1, 1, 2, n.channels["x"]]))
    if n.channels["x"] % group:
        return None
    stride = [int(v) for v in r.integers(1, 5, 2)]
    more = {"strides": stride, "dilations": [int(v) for v in r.integers(1, 3, 2)]}
    match r.integers(4):
        case 0 | 1:
            more["pads"] = [int(v) for v in r.integers(0, 4, 4)]
            if r.integers(2):
                more["output_padding"] = [int(r.integers(0, s)) for s in stride]
        case 2:
            more["auto_pad"] = str(r.choice(["SAME_UPPER", "SAME_LOWER", "VALID"]))
        case 3:
            more["output_shape"] = [int(side * s + r.integers(-1, 2)) for side, s in zip(n.shape[2:], stride)]
    kernel = tuple(int(v) for v in r.integers(1, 6, 2))
    y = n.conv_transpose(x, group * int(r.integers(1, 4)), kernel, group, per_channel=bool(r.integers(4)), bias=bool(r.integers(4)), **more)
    return n.quantize(n.node("Relu", [y]) if r.integers(3) == 0 else y)


def conv(n, r):
    """With paddings that depend on the size."""
    more = {"strides": [int(v) for v in r.integers(1, 4, 2)], "auto_pad": str(r.choice(["SAME_UPPER", "SAME_LOWER", "VALID"]))}
    return n.quantize(n.conv(n.quantize("x"), 5, tuple(int(v) for v in r.integers(1, 4, 2)), **more))


def pad(n, r):
    mode = str(r.choice(["constant", "reflect", "edge"]))
    amounts = [0, 0, *r.integers(0, 4, 2), 0, 0, *r.integers(0, 4, 2)]
    x = n.quantize("x")
    return n.same(n.node("Pad", [x, n.constant(np.array(amounts, np.int64), "pads")], mode=mode), x)


def gate(n, r):
    """Squeeze and excitation with vectors in between."""
    x = n.quantize("x")
    c = n.channels["x"]
    vector = n.flatten(n.quantize(n.node("GlobalAveragePool", [x])))
    n.channels[vector] = c
    y = n.quantize(n.gemm(vector, c, c))
    axes = np.array([2, 3] if r.integers(2) else [-1, -2], np.int64)
    if r.integers(2):
        y = n.node("Unsqueeze", [y, n.constant(axes, "axes")])
    else:
        y = n.node("Reshape", [y, n.constant(np.array([1, c, 1, 1], np.int64), "shape")])
    return n.quantize(n.node("Mul", [y, x]))


KINDS = [conv_transpose, conv_transpose, conv_transpose, conv, pad, gate]
folder, count = pathlib.Path(sys.argv[1]), int(sys.argv[2])
seed = written = 0
while written < count:
    seed += 1
    r = np.random.default_rng(seed)
    shape = [1, *(int(v) for v in r.integers(1, 7, 3))]
    if r.integers(4) == 0:
        shape[1] = int(r.integers(16, 40))
    build = KINDS[written % len(KINDS)]
    try:
        net = Net(seed, shape, "us"[r.integers(2)] + "8", binary=True)
        output = build(net, r)
        model = net.finish(output) if output else None
    except Exception:  # attributes that ONNX Runtime refuses
        continue
    if model is None:
        continue
    name, images = f"{build.__name__}_{seed}", net.images(1)
    onnx.save(model, folder / f"{name}.onnx")
    images.tofile(folder / f"{name}.in.f32")
    run(model, images, plain=True)[0].astype(np.float32).tofile(folder / f"{name}.out.f32")
    print(name)
    written += 1
