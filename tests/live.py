#!/usr/bin/env python3
"""Writes random QDQ networks with inputs and ONNX Runtime's outputs into a folder, and prints their names.

    live.py FOLDER            networks from seeds
    live.py FOLDER MODEL      MODEL itself (one input [N, C, H, W]), on 200 random pictures
"""

import pathlib
import sys

import numpy as np
import onnx

from qdq import Net, random_net, resnet, run, session

folder = pathlib.Path(sys.argv[1])


def write(name, model, images):
    onnx.save(model, folder / f"{name}.onnx")
    images.tofile(folder / f"{name}.in.f32")
    np.concatenate([y.ravel() for y in run(model, images)]).astype(np.float32).tofile(folder / f"{name}.out.f32")
    print(name)


def write_steps(name, model, image):
    """Every quantized tensor that ONNX Runtime makes of one image, in the order of the file, each named after it."""
    quantized = [n.output[0] for n in model.graph.node if n.op_type == "QuantizeLinear"]
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    exposed.graph.output.extend(onnx.ValueInfoProto(name=n) for n in quantized)
    s = session(exposed)
    values = s.run(quantized, {s.get_inputs()[0].name: image})
    for i, (tensor, value) in enumerate(zip(quantized, values)):
        value.astype(np.float32).tofile(folder / f"{name}.step{i}.f32")
    (folder / f"{name}.steps").write_text("\n".join(quantized))


if len(sys.argv) > 2:
    model = onnx.load(sys.argv[2])
    shape = [1] + [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim][1:]
    images = Net(0, shape).images(200)
    write("model", model, images)
    write_steps("model", model, images[0])
    sys.exit()

nets = {f"random_{seed}": random_net(seed) for seed in range(40)}
nets |= {f"resnet_{act}_{seed}_{bare}": resnet(seed, 8, 10, act, bare) for seed in (0, 1) for act in ("u8", "s8") for bare in (True, False)}
for name, (net, output) in nets.items():
    model, images = net.finish(output), net.images(5)
    write(name, model, images)
    write_steps(name, model, images[0])
