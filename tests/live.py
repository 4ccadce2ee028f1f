#!/usr/bin/env python3
"""Writes random QDQ networks with inputs and ONNX Runtime's outputs into a folder, and prints their names."""

import pathlib
import sys

import numpy as np
import onnx

from qdq import random_net, resnet, run

folder = pathlib.Path(sys.argv[1])
nets = {f"random_{seed}": random_net(seed) for seed in range(40)}
nets |= {f"resnet_{act}_{seed}_{bare}": resnet(seed, 8, 10, act, bare) for seed in (0, 1) for act in ("u8", "s8") for bare in (True, False)}
for name, (net, output) in nets.items():
    model, images = net.finish(output), net.images(5)
    onnx.save(model, folder / f"{name}.onnx")
    images.tofile(folder / f"{name}.in.f32")
    np.concatenate([y.ravel() for y in run(model, images)]).astype(np.float32).tofile(folder / f"{name}.out.f32")
    print(name)
