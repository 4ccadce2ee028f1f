"""Random outputs of detectors and others, and what the published decodings make of them.

Nothing here is ours: boxes are decoded as the papers' repositories state it, suppressed by `torchvision.ops.batched_nms` and, as a second
witness, by ONNX Runtime's NonMaxSuppression; maps are scaled by PyTorch. Prints JSON. Usage: answers.py SEED SIDE CASES
"""

import json
import sys

import numpy as np
import onnxruntime as ort
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper
from torchvision.ops import box_convert
from torchvision.ops.boxes import _batched_nms_vanilla

ANCHORS = [[[10, 13], [16, 30], [33, 23]], [[30, 61], [62, 45], [59, 119]], [[116, 90], [156, 198], [373, 326]]]
STRIDES = [8, 16, 32]


def nms_of_onnx():
    node = helper.make_node("NonMaxSuppression", ["boxes", "scores", "most", "iou"], ["kept"])
    inputs = [
        helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [1, None, 4]),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, None, None]),
        helper.make_tensor_value_info("most", TensorProto.INT64, [1]),
        helper.make_tensor_value_info("iou", TensorProto.FLOAT, [1]),
    ]
    graph = helper.make_graph([node], "nms", inputs, [helper.make_tensor_value_info("kept", TensorProto.INT64, [None, 3])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


NMS = nms_of_onnx()


def logit(p):
    return np.log(p) - np.log1p(-p)


class Scene:
    """Objects, and what a detector would say of them at `n` places: boxes around them, scores of which few are high."""

    def __init__(self, rng, side, classes):
        self.rng, self.side, self.classes = rng, side, classes
        self.objects = np.c_[rng.uniform(0.1, 0.9, (6, 2)), rng.uniform(0.1, 0.6, (6, 2))] * side

    def boxes(self, n):
        of = self.rng.integers(0, len(self.objects), n)
        return (self.objects[of] * self.rng.uniform(0.85, 1.15, (n, 4))).astype(np.float32)

    def scores(self, *shape):
        return self.rng.beta(0.4, 3.0, shape).astype(np.float32)


def centres(boxes):
    return box_convert(torch.from_numpy(np.asarray(boxes, np.float32)), "cxcywh", "xyxy").numpy()


def best(scores):
    return scores.max(1), scores.argmax(1)


def v8(s, _):
    n = sum((s.side // k) ** 2 for k in STRIDES)
    boxes, scores = s.boxes(n), s.scores(n, s.classes)
    out = np.concatenate([boxes.T, scores.T])[None]
    return "yolov8", [("output0", out)], (centres(boxes), *best(scores))


def v5(s, _):
    n = 3 * sum((s.side // k) ** 2 for k in STRIDES)
    boxes, scores, objects = s.boxes(n), s.scores(n, s.classes) ** np.float32(0.25), s.scores(n, 1)
    out = np.concatenate([boxes, objects, scores], 1)[None]
    return {"yolov5": {}}, [("output", out)], (centres(boxes), *best(objects * scores))


def v5_levels(s, together):
    """ultralytics/yolov5, models/yolo.py, Detect.forward."""
    outputs, found = [], []
    for i, stride in enumerate(STRIDES):
        h = w = s.side // stride
        raw = np.concatenate([s.rng.normal(0, 0.7, (3, h, w, 4)), logit(np.clip(s.scores(3, h, w, 1 + s.classes), 1e-6, 1 - 1e-6))], 3)
        raw = raw.astype(np.float32)
        y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        grid = torch.stack((x, y), 2).float() - 0.5
        p = torch.from_numpy(raw).sigmoid()
        xy = (p[..., 0:2] * 2 + grid) * stride
        wh = (p[..., 2:4] * 2) ** 2 * torch.tensor(ANCHORS[i]).float()[:, None, None]
        rows = torch.cat((xy, wh, p[..., 4:]), 3).reshape(-1, 5 + s.classes).numpy()
        found.append(rows)
        raw = raw if together else raw.transpose(0, 3, 1, 2).reshape(-1, h, w)
        outputs.append((f"level{i}", raw[None]))
    rows = np.concatenate(found)
    return {"yolov5": {"anchors": ANCHORS}}, outputs, (centres(rows[:, :4]), *best(rows[:, 4:5] * rows[:, 5:]))


def x(s, _):
    """Megvii-BaseDetection/YOLOX, yolox/utils/demo_utils.py, demo_postprocess."""
    cells = []
    for k in STRIDES:
        side = s.side // k
        xv, yv = np.meshgrid(np.arange(side), np.arange(side))
        cells.append(np.c_[xv.ravel(), yv.ravel(), np.full(side * side, k)])
    cells = np.concatenate(cells).astype(np.float32)
    n = len(cells)
    raw = np.concatenate([s.rng.normal(0, 0.7, (n, 4)), s.scores(n, 1), s.scores(n, s.classes) ** np.float32(0.25)], 1).astype(np.float32)
    boxes = np.concatenate([(raw[:, :2] + cells[:, :2]) * cells[:, 2:], np.exp(raw[:, 2:4]) * cells[:, 2:]], 1)
    return "yolox", [("output", raw[None])], (centres(boxes), *best(raw[:, 4:5] * raw[:, 5:]))


def ssd(s, relative):
    """torchvision, SSD.postprocess_detections: each class but the background is a box of its own."""
    n = 3 * (s.side // 8) ** 2
    boxes, scores = centres(s.boxes(n)), s.scores(n, 1 + s.classes)
    flat = np.concatenate([np.repeat(boxes, s.classes, 0)])
    labels = np.tile(np.arange(1, 1 + s.classes), n)
    written = boxes / np.float32(s.side) if relative else boxes
    if relative:
        flat = np.repeat(written * np.float32(s.side), s.classes, 0)
    head = {"boxes": {"background": True, "relative": relative}}
    return head, [("scores", scores[None]), ("boxes", written[None])], (flat, scores[:, 1:].ravel(), labels)


def suppressed(boxes, scores, labels, confidence, iou):
    """Kept boxes, best first; None where rounding could change which."""
    if np.abs(scores - confidence).min() < 1e-5:
        return None
    keep = scores > confidence
    boxes, scores, labels = boxes[keep], scores[keep], labels[keep]
    if len(np.unique(scores)) < len(scores):
        return None
    b = torch.from_numpy(boxes)
    from torchvision.ops import box_iou

    if len(boxes) and (box_iou(b, b) - iou).abs().min() < 1e-5:
        return None
    kept = _batched_nms_vanilla(b, torch.from_numpy(scores), torch.from_numpy(labels), iou).numpy()
    if len(boxes):
        by_class = np.zeros((1, labels.max() + 1, len(scores)), np.float32)
        by_class[0, labels, np.arange(len(scores))] = scores
        again = [np.array([len(scores)], np.int64), np.array([iou], np.float32)]
        rows = NMS.run(None, {"boxes": boxes[None], "scores": by_class, "most": again[0], "iou": again[1]})[0]
        chosen = {int(i) for _, c, i in rows if by_class[0, c, i] > 0}
        assert chosen == set(kept.tolist()), "torchvision and ONNX Runtime differ"
    return boxes[kept], scores[kept], labels[kept]


def letterbox(picture, side):
    """ultralytics/data/augment.py, LetterBox: scale, and left and top margin."""
    w, h = picture
    r = min(side / w, side / h)
    new = [round(w * r), round(h * r)]
    pad = [round((side - new[0]) / 2 - 0.1), round((side - new[1]) / 2 - 0.1)]
    return [new[0] / w, new[1] / h], pad


def detector(rng, name, make, variant, side):
    while True:
        scene = Scene(rng, side, int(rng.integers(1, 6)))
        confidence, iou = float(rng.choice([0.25, 0.5])), float(rng.choice([0.45, 0.625]))
        head, outputs, found = make(scene, variant)
        found = suppressed(*found, confidence, iou)
        if found is not None and len(found[0]) > 1:
            break
    picture = [int(v) for v in rng.integers(side // 2, side * 3, 2)]
    scale, pad = letterbox(picture, side)
    boxes = (found[0] - np.float32([*pad, *pad])) / np.float32([*scale, *scale])
    boxes = boxes.clip(0, np.float32([*picture, *picture]))[:300]
    task = {"task": "detect", "head": head, "confidence": confidence, "iou": iou, "most": 300}
    return {
        "name": name,
        "task": task,
        "resize": {"letterbox": {}},
        "picture": picture,
        "scale": scale,
        "offset": pad,
        "outputs": outputs,
        "expected": [{"index": int(c), "score": float(s), "box": b.tolist()} for b, s, c in zip(boxes, found[1], found[2])],
    }


def segmenter(rng, side):
    classes, small = int(rng.integers(2, 8)), side // 4
    logits = rng.normal(0, 1, (1, classes, small, small)).astype(np.float32)
    picture = [int(v) for v in rng.integers(side // 2, side * 2, 2)]
    large = F.interpolate(torch.from_numpy(logits), (picture[1], picture[0]), mode="bilinear", align_corners=False)[0]
    two = large.topk(2, 0)
    sure = (two.values[0] - two.values[1]) > 1e-4
    expected = torch.where(sure, two.indices[0], -1).flatten().tolist()
    return {"name": "segment", "task": {"task": "segment"}, "resize": "stretch", "picture": picture,
            "scale": [side / picture[0], side / picture[1]], "offset": [0, 0], "outputs": [("out", logits)], "expected": expected}


def vectors(rng, side):
    values = rng.normal(0, 3, (1, 16)).astype(np.float32)
    length = F.normalize(torch.from_numpy(values).double(), dim=1)[0]
    likely = torch.from_numpy(values)[0].sigmoid()
    several = [{"index": int(i), "score": float(likely[i])} for i in likely.argsort(descending=True) if likely[i] >= 0.6]
    view = {"resize": "stretch", "picture": [side, side], "scale": [1, 1], "offset": [0, 0], "outputs": [("y", values)]}
    return [
        {"name": "embed", "task": {"task": "embed"}, **view, "expected": length.tolist()},
        {"name": "multi-label", "task": {"task": "multi-label", "threshold": 0.6}, **view, "expected": several},
    ]


def main():
    seed, side, count = map(int, sys.argv[1:])
    rng = np.random.default_rng(seed)
    cases = []
    for _ in range(count):
        for name, make, variant in [
            ("yolov8", v8, None), ("yolov5", v5, None), ("yolov5 levels", v5_levels, False), ("yolov5 levels together", v5_levels, True),
            ("yolox", x, None), ("boxes", ssd, False), ("relative boxes", ssd, True),
        ]:
            cases.append(detector(rng, name, make, variant, side))
        cases.append(segmenter(rng, side))
        cases += vectors(rng, side)
    for case in cases:
        case["input"] = side
        case["outputs"] = [
            {"name": n, "shape": list(v.shape), "values": [float(f"{x:.9g}") for x in v.ravel()]} for n, v in case["outputs"]
        ]
    print(json.dumps(cases, separators=(",", ":")))


main()
