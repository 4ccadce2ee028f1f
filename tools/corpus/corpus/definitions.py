"""Networks that no package has, or has only with weights, written from their papers."""

import torch
import torch.nn.functional as F
from torch import nn

from .blocks import Classifier, Residual, conv


class FaceBlock(nn.Module):
    """BatchNorm, convolution, BatchNorm, PReLU, convolution, BatchNorm (ArcFace's IR, Deng et al. 2018)."""

    def __init__(self, c, out, stride):
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(c),
            nn.Conv2d(c, out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(out),
            nn.PReLU(out),
            nn.Conv2d(out, out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(out),
        )
        project = lambda: nn.Sequential(nn.Conv2d(c, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        self.side = project() if stride != 1 or c != out else nn.Identity()

    def forward(self, x):
        return self.body(x) + self.side(x)


def ir(depths, width=64, side=112):
    """112×112 faces to embeddings of 512."""
    layers, c = [conv(3, width, act=None), nn.PReLU(width)], width
    for i, depth in enumerate(depths):
        for j in range(depth):
            layers.append(FaceBlock(c, width << i, 1 if j else 2))
            c = width << i
    side = side // 16
    return nn.Sequential(*layers, nn.BatchNorm2d(c), nn.Dropout(0.4), nn.Flatten(), nn.Linear(c * side * side, 512), nn.BatchNorm1d(512))


def mobilenet_v1(width=1.0, act="relu6"):
    """Howard et al. 2017."""
    n = lambda c: max(8, int(c * width))
    plan = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)] + [(512, 1)] * 5 + [(1024, 2), (1024, 1)]
    layers, c = [conv(3, n(32), 3, 2, act=act)], n(32)
    for out, stride in plan:
        layers += [conv(c, c, 3, stride, groups=c, act=act), conv(c, n(out), 1, act=act)]
        c = n(out)
    return Classifier(nn.Sequential(*layers), c)


def mobile_face_net():
    """Chen et al. 2018: PReLU, and a depthwise convolution over all of space in place of a pool."""

    def block(c, out, stride, expand):
        mid = c * expand
        layers = [conv(c, mid, 1, act=None), nn.PReLU(mid), conv(mid, mid, 3, stride, groups=mid, act=None), nn.PReLU(mid), conv(mid, out, 1, act=None)]
        return Residual(*layers) if stride == 1 and c == out else nn.Sequential(*layers)

    stem = [conv(3, 64, 3, 2, act=None), nn.PReLU(64), conv(64, 64, 3, groups=64, act=None), nn.PReLU(64)]
    body = [block(64, 64, 2, 2), block(64, 64, 1, 2), block(64, 128, 2, 4), block(128, 128, 1, 2), block(128, 128, 2, 4), block(128, 128, 1, 2)]
    tail = [conv(128, 512, 1, act=None), nn.PReLU(512), conv(512, 512, 7, groups=512, act=None, padding=0), conv(512, 128, 1, act=None)]
    return nn.Sequential(*stem, *body, *tail, nn.Flatten())


def lenet():
    """LeCun et al. 1998, as tutorials write it for MNIST: 1×28×28, no BatchNorm."""
    features = [nn.Conv2d(1, 6, 5, padding=2), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2)]
    return nn.Sequential(*features, nn.Flatten(), nn.Linear(400, 120), nn.Tanh(), nn.Linear(120, 84), nn.Tanh(), nn.Linear(84, 10))


class MnistExample(nn.Module):
    """PyTorch's own MNIST example: two convolutions, one pool, logarithms of probabilities."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 32, 3), nn.Conv2d(32, 64, 3)
        self.drop1, self.drop2 = nn.Dropout(0.25), nn.Dropout(0.5)
        self.fc1, self.fc2 = nn.Linear(9216, 128), nn.Linear(128, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv2(F.relu(self.conv1(x)))), 2)
        x = F.relu(self.fc1(torch.flatten(self.drop1(x), 1)))
        return F.log_softmax(self.fc2(self.drop2(x)), dim=1)


def keras_mnist():
    """The CNN of Keras' first tutorial, with softmax."""
    features = [nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*features, nn.Flatten(), nn.Dropout(0.5), nn.Linear(1600, 10), nn.Softmax(1))


def cifar_net():
    """VGG-like for 32×32, with BatchNorm and ELU."""
    layers, c = [], 3
    for out in (32, 64, 128):
        for i in (c, out):
            layers += [nn.Conv2d(i, out, 3, padding=1), nn.ELU(), nn.BatchNorm2d(out)]
        layers, c = layers + [nn.MaxPool2d(2), nn.Dropout(0.3)], out
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(2048, 128), nn.ELU(), nn.Linear(128, 10))


def cifar_resnet20():
    """He et al. 2015, section 4.2, shortcuts without parameters: every second pixel, channels filled with zeros."""

    class Block(nn.Module):
        def __init__(self, c, out):
            super().__init__()
            self.stride, self.grow = out // c, out - c
            self.body = nn.Sequential(conv(c, out, 3, self.stride), conv(out, out, act=None))

        def forward(self, x):
            y = self.body(x)
            if self.grow:
                x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.grow // 2, self.grow - self.grow // 2))
            return F.relu(x + y)

    layers, c = [conv(3, 16)], 16
    for out in (16, 32, 64):
        for _ in range(3):
            layers, c = layers + [Block(c, out)], out
    return Classifier(nn.Sequential(*layers), 64, 10)


def autoencoder():
    """Pictures to a bottleneck and back by transposed convolutions."""
    down = lambda c, out: conv(c, out, 3, 2)
    up = lambda c, out: nn.Sequential(nn.ConvTranspose2d(c, out, 3, 2, 1, output_padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU())
    return nn.Sequential(down(3, 16), down(16, 32), down(32, 64), up(64, 32), up(32, 16), nn.ConvTranspose2d(16, 3, 2, 2), nn.Sigmoid())


def espcn(scale=3):
    """Shi et al. 2016: super-resolution by sub-pixel convolution (DepthToSpace), one channel, tanh."""
    layers = [nn.Conv2d(1, 64, 5, padding=2), nn.Tanh(), nn.Conv2d(64, 32, 3, padding=1), nn.Tanh()]
    return nn.Sequential(*layers, nn.Conv2d(32, scale * scale, 3, padding=1), nn.PixelShuffle(scale))


class Edsr(nn.Module):
    """Lim et al. 2017: residual blocks without BatchNorm, a long skip, two pixel shuffles."""

    def __init__(self, width=32, depth=4):
        super().__init__()
        c = lambda i, o: nn.Conv2d(i, o, 3, padding=1)
        self.head = c(3, width)
        self.body = nn.Sequential(*(Residual(c(width, width), nn.ReLU(), c(width, width)) for _ in range(depth)), c(width, width))
        up = [c(width, 4 * width), nn.PixelShuffle(2)]
        self.tail = nn.Sequential(*up, c(width, 4 * width), nn.PixelShuffle(2), c(width, 3))

    def forward(self, x):
        x = self.head(x)
        return self.tail(x + self.body(x))


class Fsrcnn(nn.Module):
    """Dong et al. 2016: PReLU, and a transposed convolution of 9×9 at the end."""

    def __init__(self):
        super().__init__()
        act = nn.PReLU
        layers = [nn.Conv2d(1, 56, 5, padding=2), act(56), nn.Conv2d(56, 12, 1), act(12)]
        for _ in range(4):
            layers += [nn.Conv2d(12, 12, 3, padding=1), act(12)]
        self.body = nn.Sequential(*layers, nn.Conv2d(12, 56, 1), act(56))
        self.up = nn.ConvTranspose2d(56, 1, 9, 3, 4, output_padding=2)

    def forward(self, x):
        return self.up(self.body(x))


class DnCnn(nn.Module):
    """Zhang et al. 2017: predicts the noise, which is subtracted."""

    def __init__(self, depth=8, width=48):
        super().__init__()
        middle = (conv(width, width) for _ in range(depth - 2))
        self.body = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), *middle, nn.Conv2d(width, 1, 3, padding=1))

    def forward(self, x):
        return x - self.body(x)


class UNet(nn.Module):
    """Ronneberger et al. 2015, halved three times; upsampling by transposed convolution or bilinear."""

    def __init__(self, width=16, bilinear=False, classes=21):
        super().__init__()
        double = lambda c, out: nn.Sequential(conv(c, out), conv(out, out))
        sizes = [width << i for i in range(4)]
        self.down = nn.ModuleList(double(c, out) for c, out in zip([3] + sizes, sizes))
        self.pool = nn.MaxPool2d(2)

        def up(c):
            if bilinear:
                return nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), nn.Conv2d(c, c // 2, 1))
            return nn.ConvTranspose2d(c, c // 2, 2, 2)

        self.ups = nn.ModuleList(up(c) for c in sizes[:0:-1])
        self.merge = nn.ModuleList(double(c, c // 2) for c in sizes[:0:-1])
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x):
        kept = []
        for i, block in enumerate(self.down):
            x = block(self.pool(x) if i else x)
            kept.append(x)
        for up, merge, skip in zip(self.ups, self.merge, kept[-2::-1]):
            x = merge(torch.cat([skip, up(x)], 1))
        return self.head(x)


class Crnn(nn.Module):
    """Shi et al. 2015, the convolutional part: 1×32×W lines of text to a sequence of class scores."""

    def __init__(self, classes=97):
        super().__init__()
        c = lambda i, o, norm=False: conv(i, o) if norm else nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.ReLU())
        tall = lambda: nn.MaxPool2d((2, 2), (2, 1), (0, 1))
        layers = [c(1, 64), nn.MaxPool2d(2), c(64, 128), nn.MaxPool2d(2), c(128, 256, True), c(256, 256), tall()]
        layers += [c(256, 256, True), c(256, 256), tall(), conv(256, 256, 2, padding=0)]
        self.body, self.fc = nn.Sequential(*layers), nn.Linear(256, classes)

    def forward(self, x):
        return self.fc(self.body(x).squeeze(2).permute(0, 2, 1))


class HrNet(nn.Module):
    """Sun et al. 2019, small: two and three resolutions side by side, each fused into the others."""

    def __init__(self, w=16, joints=17):
        super().__init__()
        block = lambda c: nn.Sequential(Residual(conv(c, c), conv(c, c, act=None)), nn.ReLU())
        self.stem = nn.Sequential(conv(3, 32, 3, 2), conv(32, 32, 3, 2), block(32))
        self.start = nn.ModuleList([conv(32, w), conv(32, 2 * w, 3, 2)])
        self.third = conv(2 * w, 4 * w, 3, 2)
        widths = [w, 2 * w, 4 * w]
        self.branches = nn.ModuleList(nn.ModuleList(block(c) for c in widths[:n]) for n in (2, 3))
        self.fuse = nn.ModuleList(nn.ModuleList(nn.ModuleList(self.path(widths, i, j) for j in range(n)) for i in range(n)) for n in (2, 3))
        self.head = nn.Conv2d(w, joints, 1)

    @staticmethod
    def path(widths, target, source):
        if source > target:
            up = nn.Upsample(scale_factor=2 ** (source - target), mode="nearest")
            return nn.Sequential(conv(widths[source], widths[target], 1, act=None), up)
        steps = [conv(widths[source], widths[source], 3, 2) for _ in range(target - source - 1)]
        return nn.Sequential(*steps, conv(widths[source], widths[target], 3, 2, act=None)) if source < target else nn.Identity()

    def forward(self, x):
        x = self.stem(x)
        xs = [b(x) for b in self.start]
        for branches, fuse in zip(self.branches, self.fuse):
            if len(branches) == 3:
                xs.append(self.third(xs[1]))
            xs = [b(x) for b, x in zip(branches, xs)]
            xs = [F.relu(sum(path(x) for path, x in zip(paths, xs))) for paths in fuse]
        return self.head(xs[0])


class SimpleBaseline(nn.Module):
    """Xiao et al. 2018: a ResNet and three transposed convolutions of 4×4, heat maps of joints; 256×192."""

    def __init__(self, joints=17):
        super().__init__()
        import torchvision

        backbone = torchvision.models.resnet18()
        self.body = nn.Sequential(*list(backbone.children())[:-2])
        up = lambda c, out: (nn.ConvTranspose2d(c, out, 4, 2, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU())
        self.up = nn.Sequential(*up(512, 128), *up(128, 128), *up(128, 128), nn.Conv2d(128, joints, 1))

    def forward(self, x):
        return self.up(self.body(x))


class BlazeFace(nn.Module):
    """Bazarevsky et al. 2019: depthwise 5×5, a shortcut by pool and channel padding, stride-2 padding on one side only."""

    class Block(nn.Module):
        def __init__(self, c, out, stride=1):
            super().__init__()
            self.stride, self.grow = stride, out - c
            self.depth = nn.Conv2d(c, c, 5 if stride == 1 else 3, stride, 2 if stride == 1 else 0, groups=c)
            self.point = nn.Conv2d(c, out, 1)

        def forward(self, x):
            h = F.pad(x, (0, 2, 0, 2)) if self.stride == 2 else x
            y = self.point(self.depth(h if self.stride == 1 else h[:, :, :-1, :-1]))
            x = F.max_pool2d(x, 2) if self.stride == 2 else x
            x = F.pad(x, (0, 0, 0, 0, 0, self.grow)) if self.grow else x
            return F.relu(x + y)

    def __init__(self):
        super().__init__()
        plan = [(24, 1), (28, 1), (32, 2), (36, 1), (42, 1), (48, 2), (56, 1), (64, 1), (72, 1), (80, 1), (88, 1)]
        layers, c = [nn.Conv2d(3, 24, 5, 2, 2), nn.ReLU()], 24
        for out, stride in plan:
            layers, c = layers + [self.Block(c, out, stride)], out
        self.near, self.far = nn.Sequential(*layers), nn.Sequential(self.Block(88, 96, 2), *(self.Block(96, 96) for _ in range(3)))
        self.scores = nn.ModuleList([nn.Conv2d(88, 2, 1), nn.Conv2d(96, 6, 1)])
        self.boxes = nn.ModuleList([nn.Conv2d(88, 32, 1), nn.Conv2d(96, 96, 1)])

    def forward(self, x):
        near = self.near(x)
        maps = near, self.far(near)
        flat = lambda heads, n: torch.cat([h(m).permute(0, 2, 3, 1).reshape(x.shape[0], -1, n) for h, m in zip(heads, maps)], 1)
        return flat(self.boxes, 16), flat(self.scores, 1)


class SqueezeExcite(nn.Module):
    """Hu et al. 2017, with a hard sigmoid."""

    def __init__(self, c, reduction=4):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(c, c // reduction), nn.Linear(c // reduction, c)

    def forward(self, x):
        s = F.hardsigmoid(self.fc2(F.relu(self.fc1(x.mean((2, 3))))))
        return x * s[:, :, None, None]


def se_net():
    """Residual blocks with squeeze-excite by linear layers, as many small projects write it."""
    stage = lambda c, out: nn.Sequential(conv(c, out, 3, 2), Residual(conv(out, out), conv(out, out, act=None), SqueezeExcite(out)), nn.ReLU())
    return Classifier(nn.Sequential(conv(3, 16), stage(16, 32), stage(32, 64), stage(64, 128)), 128, 10)


class Cbam(nn.Module):
    """Woo et al. 2018: attention by channel (mean and maximum share a small network), then by place."""

    def __init__(self, c, reduction=8):
        super().__init__()
        self.mlp = nn.Sequential(nn.Conv2d(c, c // reduction, 1), nn.ReLU(), nn.Conv2d(c // reduction, c, 1))
        self.place = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x):
        x = x * torch.sigmoid(self.mlp(F.adaptive_avg_pool2d(x, 1)) + self.mlp(F.adaptive_max_pool2d(x, 1)))
        return x * torch.sigmoid(self.place(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)))


def cbam_net():
    stage = lambda c, out: nn.Sequential(conv(c, out, 3, 2), Residual(conv(out, out), conv(out, out, act=None), Cbam(out)), nn.ReLU())
    return Classifier(nn.Sequential(conv(3, 16), stage(16, 32), stage(32, 64), stage(64, 128)), 128, 10)


class Dcgan(nn.Module):
    """Radford et al. 2015, the discriminator: LeakyReLU of 0.2, one score."""

    def __init__(self, w=32):
        super().__init__()
        block = lambda c, out: (nn.Conv2d(c, out, 4, 2, 1, bias=False), nn.BatchNorm2d(out), nn.LeakyReLU(0.2))
        stem = (nn.Conv2d(3, w, 4, 2, 1), nn.LeakyReLU(0.2))
        self.body = nn.Sequential(*stem, *block(w, 2 * w), *block(2 * w, 4 * w), *block(4 * w, 8 * w), nn.Conv2d(8 * w, 1, 4))

    def forward(self, x):
        return self.body(x).flatten(1).sigmoid()


class StyleTransfer(nn.Module):
    """Johnson et al. 2016 with BatchNorm: reflection padding, residual blocks, nearest upsampling."""

    def __init__(self, w=16):
        super().__init__()

        def c(i, o, k, s=1, act="relu"):
            return nn.Sequential(nn.ReflectionPad2d(k // 2), conv(i, o, k, s, act=act, padding=0))

        up = nn.Upsample(scale_factor=2)
        body = [Residual(c(4 * w, 4 * w, 3), c(4 * w, 4 * w, 3, act=None)) for _ in range(3)]
        tail = [up, c(4 * w, 2 * w, 3), up, c(2 * w, w, 3), nn.ReflectionPad2d(4), nn.Conv2d(w, 3, 9)]
        self.body = nn.Sequential(c(3, w, 9), c(w, 2 * w, 3, 2), c(2 * w, 4 * w, 3, 2), *body, *tail)

    def forward(self, x):
        return self.body(x)


class PspHead(nn.Module):
    """Zhao et al. 2016: pools to 1, 2, 3 and 6 cells, resized back and joined."""

    def __init__(self, c=64, classes=21):
        super().__init__()
        stem = (conv(3, 16, 3, 2), conv(16, 32, 3, 2), conv(32, c, 3, 2), Residual(conv(c, c), conv(c, c, act=None)), nn.ReLU())
        self.stem = nn.Sequential(*stem)
        self.pools = nn.ModuleList(nn.Sequential(nn.AdaptiveAvgPool2d(n), conv(c, c // 4, 1)) for n in (1, 2, 3, 6))
        self.head = nn.Sequential(conv(2 * c, c), nn.Conv2d(c, classes, 1))

    def forward(self, x):
        f = self.stem(x)
        size = f.shape[2:]
        parts = [F.interpolate(p(f), size=size, mode="bilinear", align_corners=False) for p in self.pools]
        return F.interpolate(self.head(torch.cat([f, *parts], 1)), size=x.shape[2:], mode="bilinear", align_corners=False)


class ParallelHeads(nn.Module):
    """Age, gender and emotion from one trunk: three classifiers."""

    def __init__(self):
        super().__init__()
        trunk = (conv(3, 16, 3, 2), conv(16, 32, 3, 2), conv(32, 64, 3, 2), conv(64, 128, 3, 2))
        self.trunk = nn.Sequential(*trunk, nn.AdaptiveMaxPool2d(1), nn.Flatten())
        self.age, self.gender, self.emotion = nn.Linear(128, 101), nn.Linear(128, 2), nn.Linear(128, 7)

    def forward(self, x):
        x = self.trunk(x)
        return self.age(x).softmax(1), self.gender(x).softmax(1), self.emotion(x).softmax(1)
