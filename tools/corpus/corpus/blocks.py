"""What the networks written here share."""

from torch import nn

ACTIVATIONS = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "leaky": lambda: nn.LeakyReLU(0.1),
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "hardswish": nn.Hardswish,
    None: nn.Identity,
}


def conv(c, out, kernel=3, stride=1, groups=1, act="relu", padding=None, bias=False):
    """Convolution, BatchNorm and an activation."""
    kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = tuple(k // 2 for k in kernel) if padding is None else padding
    layers = [nn.Conv2d(c, out, kernel, stride, padding, groups=groups, bias=bias), nn.BatchNorm2d(out)]
    return nn.Sequential(*layers, ACTIVATIONS[act]())


class Residual(nn.Module):
    """x + f(x)."""

    def __init__(self, *layers):
        super().__init__()
        self.body = nn.Sequential(*layers)

    def forward(self, x):
        return x + self.body(x)


class Classifier(nn.Module):
    """Features, the mean over space, and a linear layer."""

    def __init__(self, features, channels, classes=1000):
        super().__init__()
        self.features, self.fc = features, nn.Linear(channels, classes)

    def forward(self, x):
        return self.fc(self.features(x).mean((2, 3)))
