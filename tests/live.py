#!/usr/bin/env python3
"""Writes random QDQ networks with inputs and ONNX Runtime's outputs into a folder, and prints their names.

    live.py FOLDER            networks from seeds
    live.py FOLDER MODEL      MODEL itself (one input [N, C, H, W]), on 200 random pictures
"""

import pathlib
import sys

import numpy as np
import onnx

from qdq import Net, random_net, resnet, run

folder = pathlib.Path(sys.argv[1])


def write(name, model, images):
    onnx.save(model, folder / f"{name}.onnx")
    images.tofile(folder / f"{name}.in.f32")
    np.concatenate([y.ravel() for y in run(model, images)]).astype(np.float32).tofile(folder / f"{name}.out.f32")
    print(name)


if len(sys.argv) > 2:
    model = onnx.load(sys.argv[2])
    shape = [1] + [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim][1:]
    write("model", model, Net(0, shape).images(200))
    sys.exit()

nets = {f"random_{seed}": random_net(seed) for seed in range(40)}
nets |= {f"resnet_{act}_{seed}_{bare}": resnet(seed, 8, 10, act, bare) for seed in (0, 1) for act in ("u8", "s8") for bare in (True, False)}
for name, (net, output) in nets.items():
    write(name, net.finish(output), net.images(5))
