#!/usr/bin/env python3
"""Median latency of QDQ models in edge-infer and in ONNX Runtime, one thread each, in turn round after round.

    tools/resnet/latency.py MODEL…        needs `cargo build --release --workspace`, and onnxruntime

One line a model: name, edge-infer ms, ONNX Runtime ms."""
import json, os, pathlib, statistics, subprocess, sys, time

import numpy as np
import onnxruntime

BINARY = os.environ.get("EDGE_INFER") or pathlib.Path(__file__).resolve().parents[2] / "target/release/edge-infer"
ROUNDS, RUNS = 6, 8

for path in sys.argv[1:]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name, shape = session.get_inputs()[0].name, [d if isinstance(d, int) else 1 for d in session.get_inputs()[0].shape]
    x = np.random.default_rng(0).standard_normal(shape, np.float32)
    ours, theirs = [], []
    for _ in range(ROUNDS):
        command = [BINARY, "bench", "--model", path, "--threads", "1", "--warmup", "2", "--runs", str(RUNS), "--json"]
        ours.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)["results"][0]["latency_ms"]["median"])
        for i in range(RUNS + 2):
            begin = time.perf_counter()
            session.run(None, {name: x})
            if i >= 2:
                theirs.append(1e3 * (time.perf_counter() - begin))
    # Whoever else uses the machine only ever adds time: the least of the rounds' medians.
    rounds = [statistics.median(theirs[i * RUNS : (i + 1) * RUNS]) for i in range(ROUNDS)]
    print(pathlib.Path(path).stem, f"{min(ours):.1f}", f"{min(rounds):.1f}", flush=True)
