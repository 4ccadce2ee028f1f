"""Pictures to calibrate and to compare with, and how they become a network's input."""

import hashlib
import os

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SUFFIXES = (".png", ".jpg", ".jpeg")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def scene(rng, side):
    """A coloured scene: a spectrum that falls as 1/f, as in photographs, with some shapes in front."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None])
    frequency[0, 0] = 1
    spectrum = rng.normal(size=(3, side, side)) + 1j * rng.normal(size=(3, side, side))
    planes = np.fft.ifft2(spectrum / frequency ** rng.uniform(1.0, 1.6)).real
    planes = np.tensordot(np.eye(3) * 0.4 + 0.6, planes, 1)  # colours of photographs are correlated
    planes = (planes - planes.mean((1, 2), keepdims=True)) / planes.std((1, 2), keepdims=True)
    planes = rng.uniform(60, 190, (3, 1, 1)) + rng.uniform(25, 60) * planes
    im = Image.fromarray(planes.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))
    draw = ImageDraw.Draw(im)
    for _ in range(rng.integers(1, 7)):
        x, y = rng.integers(-side // 4, side, 2)
        w, h = rng.integers(side // 12, side // 2, 2)
        shape = (draw.ellipse, draw.rectangle)[rng.integers(2)]
        shape([x, y, x + w, y + h], fill=tuple(int(v) for v in rng.integers(0, 256, 3)))
    return im.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.5)))


def collect(folder, sources, count, side=256):
    """Fills `folder` with `count` pictures of shorter side `side`: those of `sources`, evenly spaced, then generated ones."""
    found = sorted(os.path.join(d, f) for s in sources for d, _, files in os.walk(s) for f in files if f.lower().endswith(SUFFIXES))
    found = found[:: max(1, len(found) // count)][:count]
    key = hashlib.sha256(repr((found, count, side, 1)).encode()).hexdigest()[:12]
    folder = os.path.join(folder, f"pictures-{key}")
    names = [os.path.join(folder, f"{i:03}.png") for i in range(count)]
    if all(os.path.exists(n) for n in names):
        return folder, names
    os.makedirs(folder, exist_ok=True)
    rng = np.random.default_rng(20)
    for i, name in enumerate(names):
        if i < len(found):
            im = Image.open(found[i]).convert("RGB")
            scale = side / min(im.size)
            im = im.resize([round(s * scale) for s in im.size], Image.BILINEAR)
        else:
            im = scene(rng, side)
        im.save(name)
    return folder, names


def record(channels, height, width):
    """The preprocessing that `edge-quantize` chooses where it is told nothing (its `--help`)."""
    mean, std = (MEAN, STD) if channels == 3 else ((sum(MEAN) / 3,), (sum(STD) / 3,))
    return {"width": width, "height": height, "resize": {"short_side": max(width, height) * 256 // 224}, "color": "rgb" if channels == 3 else "gray", "mean": mean, "std": std}


def prepare(paths, record):
    """N×C×H×W values as edge-infer prepares them (`src/metadata.rs`)."""
    width, height = record["width"], record["height"]
    out = []
    for path in paths:
        im = Image.open(path).convert("L" if record["color"] == "gray" else "RGB")
        if record["resize"] == "stretch":
            im = im.resize((width, height), Image.BILINEAR)
        else:
            scale = record["resize"]["short_side"] / min(im.size)
            im = im.resize([round(s * scale) for s in im.size], Image.BILINEAR)
            left, top = (im.size[0] - width) // 2, (im.size[1] - height) // 2
            im = im.crop((left, top, left + width, top + height))
        x = np.asarray(im, np.float32).reshape(height, width, -1)
        if record["color"] == "bgr":
            x = x[..., ::-1]
        x = (x / 255 - np.float32(record["mean"])) / np.float32(record["std"])
        out.append(x.transpose(2, 0, 1))
    return np.stack(out).astype(np.float32)
