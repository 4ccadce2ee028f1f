"""What edge-quantize and edge-infer make of an ONNX file, beside ONNX Runtime and OpenVINO."""

import json
import os
import statistics
import subprocess
import tempfile
import time

import numpy as np

QUANTIZED = {"QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "QLinearAdd", "ConvInteger", "MatMulInteger"}
DISCARDED = 3  # inferences before the timed ones


class Refused(Exception):
    """A tool said no; `stage` says which."""

    def __init__(self, stage, message):
        super().__init__(message)
        self.stage, self.message = stage, message


def tool(stage, command, timeout):
    """Standard output, and what the tool said beside it. A refusal becomes an error with the tool's own words."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=timeout, text=True)
    except subprocess.TimeoutExpired:
        raise Refused(stage, f"not done after {timeout} s") from None
    said = done.stderr.strip()
    if done.returncode:
        # A crash is not a refusal, and shows.
        code = "" if done.returncode in (1, 2) and "panicked" not in said else f"exit code {done.returncode}: "
        # What was said before the error itself is no part of it.
        said = said[said.rfind("\nerror: ") + 1 :].removeprefix("error: ").removeprefix("edge-quantize: ")
        raise Refused(stage, code + without_folders(said, command))
    return done.stdout, without_folders(said, command)


def without_folders(text, command):
    """Names of files only: where they were is nobody's interest."""
    for argument in command:
        text = text.replace(os.path.dirname(argument) + "/", "") if "/" in argument else text
    return text


def dimensions(value):
    return [d.dim_value if d.WhichOneof("value") == "dim_value" else None for d in value.type.tensor_type.shape.dim]


def open_model(path):
    """A model, its data inputs and whether it is quantized already."""
    import onnx

    model = onnx.load(path)
    constants = {i.name for i in model.graph.initializer}
    inputs = [i for i in model.graph.input if i.name not in constants]
    return model, inputs, any(n.op_type in QUANTIZED for n in model.graph.node)


def products(node, shapes):
    """Multiply-accumulates of a node; None where it has none."""
    if node.op_type in ("Conv", "ConvTranspose", "QLinearConv", "ConvInteger"):
        weights = shapes[node.input[3 if node.op_type == "QLinearConv" else 1]]
        # Each value of a transposed convolution's input, of any other's output, meets one filter.
        side = shapes[node.input[0] if node.op_type == "ConvTranspose" else node.output[0]]
        return int(np.prod(side, dtype=np.int64) * np.prod(weights[1:], dtype=np.int64))
    if node.op_type in ("Gemm", "MatMul", "QLinearMatMul", "QGemm"):
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        return int(np.prod(shapes[node.output[0]], dtype=np.int64) * shapes[node.input[0]][0 if transposed else -1])
    return None


def multiply_accumulates(model, shape):
    """Of each convolution and matrix product, by node name."""
    import onnx
    import onnxruntime

    constants = {i.name: list(i.dims) for i in model.graph.initializer}
    inputs = [i for i in model.graph.input if i.name not in constants]
    for d, known in zip(inputs[0].type.tensor_type.shape.dim, shape):
        d.dim_value = known
    # What the file claims of a dynamic batch would get in the way.
    del model.graph.value_info[:]
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {v.name: dimensions(v) for v in [*inferred.value_info, *inferred.input, *inferred.output]} | constants
    counts, unknown = {}, []
    for node in model.graph.node:
        try:
            counts[node.name or node.output[0]] = products(node, shapes)
        except (KeyError, TypeError, IndexError):
            unknown.append(node)
    if unknown:  # what inference cannot follow, a run shows
        wanted = {v for n in unknown for v in (n.input[0], n.input[1], n.output[0]) if v not in constants}
        wanted -= {o.name for o in model.graph.output}
        model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(v) for v in sorted(wanted - {inputs[0].name}))
        session = onnxruntime_session(model.SerializeToString(), False)
        names = [o.name for o in session.get_outputs()]
        wanted = session.get_inputs()[0]
        kind = {"tensor(float16)": np.float16, "tensor(uint8)": np.uint8, "tensor(int8)": np.int8}.get(wanted.type, np.float32)
        values = session.run(names, {wanted.name: np.zeros(shape, kind)})
        shapes |= {n: v.shape for n, v in zip(names, values)} | {inputs[0].name: shape}
        counts |= {n.name or n.output[0]: products(n, shapes) for n in unknown}
    return {name: count for name, count in counts.items() if count is not None}


def last_step(model, output):
    """Scale of the quantized tensor nearest before `output`."""
    from onnx import numpy_helper

    values = {i.name: i for i in model.graph.initializer}
    values |= {n.output[0]: n.attribute[0].t for n in model.graph.node if n.op_type == "Constant"}
    made = {o: n for n in model.graph.node for o in n.output}
    seen, queue = set(), [output]
    while queue:
        node = made.get(queue.pop(0))
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        if node.op_type == "QuantizeLinear" and node.input[1] in values:
            return float(numpy_helper.to_array(values[node.input[1]]).ravel()[0])
        queue += node.input
    return None


def onnxruntime_session(path, optimized, threads=1):
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # u8·s8 products must not saturate on processors without VNNI.
    options.add_session_config_entry("session.x64quantprecision", "1")
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def feed(session, x):
    """One input as this session's model wants it: `x` is N×C×H×W of any type."""
    wanted = session.get_inputs()[0]
    if len(wanted.shape) == 4 and wanted.shape[3] == x.shape[1] != wanted.shape[1]:
        x = x.transpose(0, 2, 3, 1)
    kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64, "tensor(uint8)": np.uint8, "tensor(int8)": np.int8}
    return {wanted.name: np.ascontiguousarray(x, kinds[wanted.type])}


def onnxruntime_values(path, x, optimized):
    """The first output for each input."""
    session = onnxruntime_session(path, optimized)
    first = session.get_outputs()[0].name
    return np.concatenate([session.run([first], feed(session, x[i : i + 1]))[0] for i in range(len(x))])


def timed(infer, runs):
    sample = []
    for i in range(runs + DISCARDED):
        begin = time.perf_counter()
        infer()
        if i >= DISCARDED:
            sample.append(1e3 * (time.perf_counter() - begin))
    return statistics.median(sample)


def sqnr_db(reference, values):
    noise = float(np.square(np.float64(reference) - values).sum())
    signal = float(np.square(np.float64(reference)).sum())
    return None if noise == 0 or signal == 0 else 10 * float(np.log10(signal / noise))


def same_top1(task, reference, values):
    """Share of pictures, places or steps with the same best class; None where the output has no classes."""
    axis = {"classes": -1, "sequence": -1, "places": 1}.get(task)
    if axis is None:
        return None
    return float((reference.argmax(axis) == values.argmax(axis)).mean())


def latency(a, path, x, size, optimized):
    """Medians of one picture on one thread, the runtimes in turns; the least of the rounds, as others only ever add time."""
    rounds = {"ours_ms": [], "onnxruntime_ms": [], "openvino_ms": []}
    session = onnxruntime_session(path, optimized)
    inputs = feed(session, x)
    turns = {"onnxruntime_ms": lambda: session.run(None, inputs)}
    failed = {}
    try:
        import openvino

        settings = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"}
        request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()
        turns["openvino_ms"] = lambda: request.infer(list(inputs.values()))
    except Exception as e:  # not installed, or it does not take this model: the others are still of use
        failed["openvino_error"] = str(e).strip().splitlines()[-1][:200]
    command = [a.edge_infer, "bench", "--model", path, *size, "--threads", "1", "--warmup", str(DISCARDED), "--runs", str(a.runs), "--json"]
    for _ in range(a.rounds):
        out, _ = tool("bench", command, a.timeout)
        rounds["ours_ms"].append(json.loads(out)["results"][0]["latency_ms"]["median"])
        for name, infer in turns.items():
            rounds[name].append(timed(infer, a.runs))
    return {name: min(values) for name, values in rounds.items() if values} | failed


def measure(a, path, shape, task, pictures, folder):
    """One row of the table, but for its name. `a`: paths of the tools and sizes of the run; `shape`: channels, height, width."""
    row, begin = {"status": "refused"}, time.time()
    try:
        with tempfile.TemporaryDirectory(dir=a.cache) as temporary:
            row |= rows(a, path, shape, task, pictures, folder, temporary, row)
            row["status"] = "run"
    except Refused as e:
        row |= {"stage": e.stage, "message": e.message}
    row["seconds"] = round(time.time() - begin, 1)
    return row


def rows(a, path, shape, task, pictures, folder, temporary, row):
    from .pictures import prepare, record

    model, inputs, quantized = open_model(path)
    dims = dimensions(inputs[0])
    nhwc = len(dims) == 4 and dims[1] not in (1, 3) and dims[3] in (1, 3)
    channels, height, width = shape
    full = [1, height, width, channels] if nhwc else [1, *shape]
    counts = multiply_accumulates(model, full)
    row["opset"] = max(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    row["macs"] = sum(counts.values())
    row["operators"] = sorted({n.op_type for n in model.graph.node})
    row["outputs"] = len(model.graph.output)

    target, size = path, []
    if None in dims[1:]:
        size = ["--size", f"{height}x{width}"]
    case = path.removesuffix(".onnx") + ".npz"  # a file with an input of its own is run as it is
    whole = not quantized and not os.path.exists(case)
    if whole:
        target = os.path.join(temporary, "q.onnx")
        command = [a.edge_quantize, path, "-o", target, *size, "--calib", folder, "--images", str(a.images), "--recipe", a.recipe, "--jobs", "1", "--json"]
        begin = time.time()
        out, said = tool("quantize", command, a.timeout)
        report = json.loads(out)
        row["quantize"] = {k: report.get(k) for k in ("sqnr_db", "logit_sqnr_db", "agreement") if k in report}
        row["quantize_seconds"] = round(time.time() - begin, 1)
        row["said_quantize"] = said
    del model

    out, said = tool("load", [a.edge_infer, "inspect", target, *size, "--json", "--threads", "1"], a.timeout)
    report = json.loads(out)
    row["said"] = said
    row["regions"] = report["regions"]
    row["int8_macs"] = report["int8_macs"]
    # Phases of a transposed convolution have taps of zero, which are computed and counted like others.
    row["int8_share"] = min(1, report["int8_macs"] / row["macs"]) if row["macs"] else None
    row["float"] = [{k: n[k] for k in ("name", "op", "why")} | {"macs": counts.get(n["name"])} for n in report["nodes"] if n.get("why")]
    row["isa"] = report["isa"]

    if os.path.exists(case):
        x = next(v for k, v in np.load(case).items() if k.startswith("in_"))
        x = x.transpose(0, 3, 1, 2) if nhwc else x
    else:
        x = prepare(pictures[: a.compare], record(channels, height, width))
        if inputs[0].type.tensor_type.elem_type in (2, 3):  # uint8, int8
            x = (x * 40).round().clip(-100, 100) + (100 if inputs[0].type.tensor_type.elem_type == 2 else 0)
    source, result = os.path.join(temporary, "x.f32"), os.path.join(temporary, "y.f32")
    np.ascontiguousarray(x, np.float32).tofile(source)
    tool("run", [a.edge_infer, "tensor", "--model", target, *size, "--input", source, "--output", result, "--threads", "1"], a.timeout)
    plain = np.float32(onnxruntime_values(target, x, False))
    ours = np.fromfile(result, np.float32)
    if ours.size != plain.size:
        raise Refused("compare", f"edge-infer gives {ours.size} values, ONNX Runtime {plain.size}")
    ours = ours.reshape(plain.shape)
    if not np.isfinite(ours).all():
        raise Refused("compare", "edge-infer gives values that are not finite")
    try:
        fast = np.float32(onnxruntime_values(target, x, True))
    except Exception as e:  # its optimizer fails on some files (1.32: NHWC int8 from TFLite); without it they run
        row["onnxruntime_error"] = str(e).strip().splitlines()[0][:200]
        fast = plain
    model, _, _ = open_model(target)
    step = last_step(model, model.graph.output[0].name)
    del model
    steps = lambda p, q: None if step is None else float(np.abs(np.float64(p) - q).max() / step)
    row["step"] = step
    row["largest_value"] = float(np.abs(plain).max())
    row["largest_difference"] = float(np.abs(np.float64(ours) - plain).max())
    row["steps"], row["steps_fast"], row["steps_between"] = steps(ours, plain), steps(ours, fast), steps(plain, fast)
    row["top1"], row["top1_fast"], row["top1_between"] = same_top1(task, plain, ours), same_top1(task, fast, ours), same_top1(task, plain, fast)
    if whole:
        reference = onnxruntime_values(path, x, True)
        row["sqnr_db"], row["sqnr_db_onnxruntime"] = sqnr_db(reference, ours), sqnr_db(reference, plain)
        row["top1_float"] = same_top1(task, reference, ours)
    if a.runs:
        row |= latency(a, target, x[:1], size, "onnxruntime_error" not in row)
    return row
