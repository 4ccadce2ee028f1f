"""From a PyTorch module to an ONNX file, as people do it."""

import contextlib
import io
import os
import warnings

EXPORTERS = {
    "ts11": "torch.onnx, TorchScript, opset 11",
    "ts13": "torch.onnx, TorchScript, opset 13",
    "ts17": "torch.onnx, TorchScript, opset 17",
    "ts17-batch": "the same with a dynamic batch",
    "dynamo": "torch.onnx, torch.export",
    "keras": "Keras by tf2onnx, N×H×W×C",
}


def export(module, x, path, exporter):
    """Writes `path` at once or not at all."""
    import torch

    temporary, names = path + ".part", {"input_names": ["input"]}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        if exporter == "dynamo":
            torch.onnx.export(module, (x,), temporary, dynamo=True, external_data=False, **names)
        else:
            opset, _, variant = exporter.removeprefix("ts").partition("-")
            if variant == "batch":
                names["dynamic_axes"] = {"input": {0: "N"}}
            torch.onnx.export(module, (x,), temporary, dynamo=False, opset_version=int(opset), **names)
    os.replace(temporary, path)


def make(network, exporter, path, pictures):
    """Builds, calibrates and exports one network. Returns its number of parameters."""
    import torch

    from . import calibrate
    from .pictures import prepare, record

    torch.manual_seed(0)
    module = network.build()
    channels, height, width = network.shape
    x = torch.from_numpy(prepare(pictures, record(channels, height, width)))
    # A softmax or sigmoid at the end saturates where scores are spread too far.
    calibrate.calibrate(module, x, strength={"classes": 3.0, "places": 2.0, "sequence": 2.0}.get(network.task, 1.0))
    export(module, x[:1], path, exporter)
    return sum(p.numel() for p in module.parameters())
