"""One-stage detectors in the shapes that their papers and model cards give: YOLOv3-tiny (Redmon and Farhadi 2018), YOLOv4-CSP
(Wang et al. 2020, Mish), YOLOv5 and YOLOv8 (Ultralytics' published diagrams), YOLOX (Ge et al. 2021), YOLOv7-tiny's ELAN
(Wang et al. 2022), CenterNet (Zhou et al. 2019) and a face detector with anchors as in RetinaFace (Deng et al. 2019)."""

import torch
import torch.nn.functional as F
from torch import nn

from .blocks import Residual, conv


class Csp(nn.Module):
    """Half of the channels goes through residual blocks, half past them (C3; CSPNet, Wang et al. 2019)."""

    def __init__(self, c, out, depth, act, shortcut=True):
        super().__init__()
        half = out // 2
        block = lambda: (conv(half, half, 1, act=act), conv(half, half, 3, act=act))
        self.one = conv(c, half, 1, act=act)
        self.body = nn.Sequential(*(Residual(*block()) if shortcut else nn.Sequential(*block()) for _ in range(depth)))
        self.two, self.join = conv(c, half, 1, act=act), conv(2 * half, out, 1, act=act)

    def forward(self, x):
        return self.join(torch.cat([self.body(self.one(x)), self.two(x)], 1))


class C2f(nn.Module):
    """Every block's output is kept and joined (YOLOv8)."""

    def __init__(self, c, out, depth, act, shortcut=True):
        super().__init__()
        half = out // 2
        block = lambda: (conv(half, half, 3, act=act), conv(half, half, 3, act=act))
        self.enter, self.join = conv(c, out, 1, act=act), conv((2 + depth) * half, out, 1, act=act)
        self.body = nn.ModuleList(Residual(*block()) if shortcut else nn.Sequential(*block()) for _ in range(depth))

    def forward(self, x):
        parts = list(self.enter(x).chunk(2, 1))
        for block in self.body:
            parts.append(block(parts[-1]))
        return self.join(torch.cat(parts, 1))


class Elan(nn.Module):
    """YOLOv7-tiny's block."""

    def __init__(self, c, out, depth, act, shortcut=True):
        super().__init__()
        half = out // 2
        self.a, self.b = conv(c, half, 1, act=act), conv(c, half, 1, act=act)
        self.c, self.d = conv(half, half, 3, act=act), conv(half, half, 3, act=act)
        self.join = conv(4 * half, out, 1, act=act)

    def forward(self, x):
        a, b = self.a(x), self.b(x)
        c = self.c(b)
        return self.join(torch.cat([self.d(c), c, b, a], 1))


class Sppf(nn.Module):
    """Three pools of 5×5 in a row; or, as published first, pools of 5, 9 and 13 side by side."""

    def __init__(self, c, act, parallel=False):
        super().__init__()
        self.enter, self.leave, self.parallel = conv(c, c // 2, 1, act=act), conv(2 * c, c, 1, act=act), parallel

    def forward(self, x):
        x = self.enter(x)
        if self.parallel:
            return self.leave(torch.cat([x, *(F.max_pool2d(x, k, 1, k // 2) for k in (5, 9, 13))], 1))
        parts = [x]
        for _ in range(3):
            parts.append(F.max_pool2d(parts[-1], 5, 1, 2))
        return self.leave(torch.cat(parts, 1))


class Focus(nn.Module):
    """Every second pixel of every second row: space to depth by four slices (YOLOv5's first form, YOLOX)."""

    def __init__(self, out, act):
        super().__init__()
        self.conv = conv(12, out, 3, act=act)

    def forward(self, x):
        return self.conv(torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1))


class Pyramid(nn.Module):
    """Backbone and path-aggregation neck: features of strides 8, 16 and 32."""

    def __init__(self, width, block, act="silu", depth=1, focus=False, parallel=False, align=None):
        super().__init__()
        w = width
        up = lambda: nn.Upsample(scale_factor=2, mode="nearest" if align is None else "bilinear", align_corners=align)
        self.stem = nn.Sequential(
            Focus(w, act) if focus else conv(3, w, 3, 2, act=act),
            conv(w, 2 * w, 3, 2, act=act),
            block(2 * w, 2 * w, depth, act),
            conv(2 * w, 4 * w, 3, 2, act=act),
            block(4 * w, 4 * w, depth, act),
        )
        self.c4 = nn.Sequential(conv(4 * w, 8 * w, 3, 2, act=act), block(8 * w, 8 * w, depth, act))
        self.c5 = nn.Sequential(conv(8 * w, 16 * w, 3, 2, act=act), block(16 * w, 16 * w, depth, act), Sppf(16 * w, act, parallel))
        self.lateral5, self.lateral4 = conv(16 * w, 8 * w, 1, act=act), conv(8 * w, 4 * w, 1, act=act)
        self.up5, self.up4 = up(), up()
        self.top4, self.top3 = block(16 * w, 8 * w, depth, act, False), block(8 * w, 4 * w, depth, act, False)
        self.down3, self.down4 = conv(4 * w, 4 * w, 3, 2, act=act), conv(8 * w, 8 * w, 3, 2, act=act)
        self.out4, self.out5 = block(8 * w, 8 * w, depth, act, False), block(16 * w, 16 * w, depth, act, False)
        self.channels = (4 * w, 8 * w, 16 * w)

    def forward(self, x):
        c3 = self.stem(x)
        c4 = self.c4(c3)
        p5 = self.lateral5(self.c5(c4))
        p4 = self.lateral4(self.top4(torch.cat([self.up5(p5), c4], 1)))
        p3 = self.top3(torch.cat([self.up4(p4), c3], 1))
        n4 = self.out4(torch.cat([self.down3(p3), p4], 1))
        return p3, n4, self.out5(torch.cat([self.down4(n4), p5], 1))


def grid(h, w):
    """1×1×h×w×2: x and y of each cell."""
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    return torch.stack([x, y], -1).float()[None, None]


class AnchorHead(nn.Module):
    """YOLOv5: three anchors a cell, boxes decoded in the graph; `raw`: the three maps as they are."""

    ANCHORS = ([10, 13, 16, 30, 33, 23], [30, 61, 62, 45, 59, 119], [116, 90, 156, 198, 373, 326])

    def __init__(self, channels, classes, raw):
        super().__init__()
        self.raw, self.values = raw, classes + 5
        self.heads = nn.ModuleList(nn.Conv2d(c, 3 * self.values, 1) for c in channels)

    def forward(self, features):
        maps = [head(f) for head, f in zip(self.heads, features)]
        if self.raw:
            return tuple(maps)
        out = []
        for y, stride, anchors in zip(maps, (8, 16, 32), self.ANCHORS):
            n, _, h, w = y.shape
            y = y.view(n, 3, self.values, h, w).permute(0, 1, 3, 4, 2).sigmoid()
            xy, wh, rest = y.split((2, 2, self.values - 4), 4)
            xy = (xy * 2 + (grid(h, w) - 0.5)) * stride
            wh = (wh * 2) ** 2 * torch.tensor(anchors).float().view(1, 3, 1, 1, 2)
            out.append(torch.cat([xy, wh, rest], 4).view(n, -1, self.values))
        return torch.cat(out, 1)


class DistributionHead(nn.Module):
    """YOLOv8: decoupled, without anchors; each side of a box is the mean of a distribution over 16 bins."""

    def __init__(self, channels, classes, act="silu"):
        super().__init__()
        self.classes, c = classes, channels[0]
        box, label = max(16, c // 4, 64), max(c, min(classes, 100))
        branch = lambda i, mid, out: nn.Sequential(conv(i, mid, act=act), conv(mid, mid, act=act), nn.Conv2d(mid, out, 1))
        self.boxes = nn.ModuleList(branch(i, box, 64) for i in channels)
        self.labels = nn.ModuleList(branch(i, label, classes) for i in channels)
        self.mean = nn.Conv2d(16, 1, 1, bias=False).requires_grad_(False)

    def forward(self, features):
        # Set here, because the calibration scales every convolution.
        self.mean.weight.data = torch.arange(16.0).view(1, 16, 1, 1)
        maps = [torch.cat([b(f), c(f)], 1) for f, b, c in zip(features, self.boxes, self.labels)]
        sizes = [m.shape[-2:] for m in maps]
        boxes, labels = torch.cat([m.flatten(2) for m in maps], 2).split((64, self.classes), 1)
        n, _, cells = boxes.shape
        sides = self.mean(boxes.view(n, 4, 16, cells).transpose(2, 1).softmax(1)).view(n, 4, cells)
        centres = torch.cat([grid(h, w).view(1, -1, 2).transpose(1, 2) + 0.5 for h, w in sizes], 2)
        strides = torch.cat([torch.full((1, 1, h * w), float(s)) for (h, w), s in zip(sizes, (8, 16, 32))], 2)
        near, far = sides.chunk(2, 1)
        low, high = centres - near, centres + far
        return torch.cat([torch.cat([(low + high) / 2, high - low], 1) * strides, labels.sigmoid()], 1)


class DecoupledHead(nn.Module):
    """YOLOX: classes and boxes in branches of their own, all cells in one output."""

    def __init__(self, channels, classes, act="silu"):
        super().__init__()
        c = channels[0]
        branch = lambda: nn.Sequential(conv(c, c, act=act), conv(c, c, act=act))
        self.stems = nn.ModuleList(conv(i, c, 1, act=act) for i in channels)
        self.labels, self.boxes = (nn.ModuleList(branch() for _ in channels) for _ in range(2))
        self.label_out, self.box_out, self.object_out = (nn.ModuleList(nn.Conv2d(c, n, 1) for _ in channels) for n in (classes, 4, 1))

    def forward(self, features):
        out = []
        for i, f in enumerate(features):
            x = self.stems[i](f)
            label, box = self.labels[i](x), self.boxes[i](x)
            out.append(torch.cat([self.box_out[i](box), self.object_out[i](box).sigmoid(), self.label_out[i](label).sigmoid()], 1))
        return torch.cat([y.flatten(2) for y in out], 2).permute(0, 2, 1)


def yolov5(width=16, act="silu", raw=False, focus=False, parallel=False):
    body = Pyramid(width, Csp, act, focus=focus, parallel=parallel)
    return nn.Sequential(body, AnchorHead(body.channels, 80, raw))


def yolov8(width=16, act="silu"):
    body = Pyramid(width, C2f, act)
    return nn.Sequential(body, DistributionHead(body.channels, 80, act))


def yolox(width=16, act="silu"):
    body = Pyramid(width, Csp, act, focus=True, parallel=True)
    return nn.Sequential(body, DecoupledHead(body.channels, 80, act))


def yolov7_tiny(width=16):
    body = Pyramid(width, Elan, "leaky")
    return nn.Sequential(body, AnchorHead(body.channels, 80, True))


def yolov4_csp(width=16):
    body = Pyramid(width, Csp, "mish", parallel=True)
    return nn.Sequential(body, AnchorHead(body.channels, 80, False))


class YoloV3Tiny(nn.Module):
    def __init__(self, classes=80):
        super().__init__()
        layers, c = [], 3
        for out in (16, 32, 64, 128):
            layers += [conv(c, out, act="leaky"), nn.MaxPool2d(2)]
            c = out
        self.stem = nn.Sequential(*layers, conv(128, 256, act="leaky"))
        # The last pool keeps its size: one column and row of padding after.
        self.deep = nn.Sequential(nn.MaxPool2d(2), conv(256, 512, act="leaky"), nn.ZeroPad2d((0, 1, 0, 1)), nn.MaxPool2d(2, 1))
        self.deeper = nn.Sequential(conv(512, 1024, act="leaky"), conv(1024, 256, 1, act="leaky"))
        self.coarse = nn.Sequential(conv(256, 512, act="leaky"), nn.Conv2d(512, 3 * (classes + 5), 1))
        self.lateral, self.up = conv(256, 128, 1, act="leaky"), nn.Upsample(scale_factor=2)
        self.fine = nn.Sequential(conv(384, 256, act="leaky"), nn.Conv2d(256, 3 * (classes + 5), 1))

    def forward(self, x):
        c4 = self.stem(x)
        c5 = self.deeper(self.deep(c4))
        return self.coarse(c5), self.fine(torch.cat([self.up(self.lateral(c5)), c4], 1))


class CenterNet(nn.Module):
    """A residual backbone, three transposed convolutions and three heads: heat map, size, offset."""

    def __init__(self, classes=80):
        super().__init__()
        stage = lambda c, out: nn.Sequential(conv(c, out, 3, 2), Residual(conv(out, out), conv(out, out, act=None)), nn.ReLU())
        self.body = nn.Sequential(conv(3, 16, 7, 2), stage(16, 32), stage(32, 64), stage(64, 128), stage(128, 256))
        up = lambda c, out: nn.Sequential(nn.ConvTranspose2d(c, out, 4, 2, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU())
        self.up = nn.Sequential(up(256, 128), up(128, 64), up(64, 64))
        head = lambda out: nn.Sequential(nn.Conv2d(64, 64, 3, 1, 1), nn.ReLU(), nn.Conv2d(64, out, 1))
        self.heat, self.size, self.offset = head(classes), head(2), head(2)

    def forward(self, x):
        x = self.up(self.body(x))
        return self.heat(x).sigmoid(), self.size(x), self.offset(x)


class RetinaFace(nn.Module):
    """MobileNetV1 0.25, a feature pyramid with nearest upsampling to a tensor's own size, SSH contexts, and three kinds of heads."""

    def __init__(self):
        super().__init__()
        act = "leaky"
        pair = lambda c, out, s=1: nn.Sequential(conv(c, c, 3, s, groups=c, act=act), conv(c, out, 1, act=act))
        self.s1 = nn.Sequential(conv(3, 8, 3, 2, act=act), pair(8, 16), pair(16, 32, 2), pair(32, 32), pair(32, 64, 2), pair(64, 64))
        self.s2 = nn.Sequential(pair(64, 128, 2), *(pair(128, 128) for _ in range(5)))
        self.s3 = nn.Sequential(pair(128, 256, 2), pair(256, 256))
        self.lateral = nn.ModuleList(conv(c, 64, 1, act=act) for c in (64, 128, 256))
        self.merge = nn.ModuleList(conv(64, 64, 3, act=act) for _ in range(2))
        self.context = nn.ModuleList(nn.ModuleList([conv(64, 32, act=None), conv(64, 16, act=act), conv(16, 16, act=None), conv(16, 16, act=act), conv(16, 16, act=None)]) for _ in range(3))
        self.heads = nn.ModuleList(nn.ModuleList(nn.Conv2d(64, 2 * n, 1) for _ in range(3)) for n in (4, 2, 10))

    def forward(self, x):
        c1 = self.s1(x)
        c2 = self.s2(c1)
        c3 = self.s3(c2)
        p1, p2, p3 = (lateral(c) for lateral, c in zip(self.lateral, (c1, c2, c3)))
        p2 = self.merge[1](p2 + F.interpolate(p3, size=p2.shape[2:], mode="nearest"))
        p1 = self.merge[0](p1 + F.interpolate(p2, size=p1.shape[2:], mode="nearest"))
        features = []
        for p, (a, b, c, d, e) in zip((p1, p2, p3), self.context):
            mid = b(p)
            features.append(F.relu(torch.cat([a(p), c(mid), e(d(mid))], 1)))
        outs = []
        for values, heads in zip((4, 2, 10), self.heads):
            y = torch.cat([h(f).permute(0, 2, 3, 1).reshape(f.shape[0], -1, values) for h, f in zip(heads, features)], 1)
            outs.append(y.softmax(-1) if values == 2 else y)
        return tuple(outs)
