"""Gives a network without trained weights the activations of one that has them.

Freshly initialised, a deep network is degenerate: signals vanish or explode where there is no normalization, residual branches
are silent (a last BatchNorm of weight 0, layer scales of 1e-6), and the logits of all pictures are the same. Quantized, such a
network shows nothing. Here every BatchNorm gets random weights and the statistics of real pictures, every layer
without one is scaled to outputs of unit variance (Mishkin and Matas, "All you need is a good init", 2016), and the last layer is
made to read what differs between pictures."""

import torch
from torch import nn

LINEAR = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
COMPONENTS = 8


def randomize(module, generator):
    """Silent branches speak; BatchNorm's channels differ, as trained ones do. Most are shifted up: behind a shift of 0, ReLU takes
    more from the signal than from the noise in it, and in a deep network without shortcuts noise wins."""
    for m in module.modules():
        if isinstance(m, NORMS) and m.affine:
            m.weight.data.uniform_(0.6, 1.4, generator=generator)
            m.bias.data.normal_(0.6, 0.6, generator=generator)
        if isinstance(m, nn.PReLU):
            m.weight.data.uniform_(0.1, 0.4, generator=generator)
    for name, p in module.named_parameters():
        if name.rsplit(".", 1)[-1] in ("gamma", "gamma1", "gamma2", "layer_scale", "gamma_1") and p.abs().max() < 0.01:
            p.data.uniform_(0.2, 0.6, generator=generator)


def follows_norm(module):
    """Linear layers whose output a BatchNorm takes next, by order of registration: these need no scaling."""
    order = [m for m in module.modules() if not list(m.children()) and not isinstance(m, (nn.Identity, nn.Dropout))]
    return {a for a, b in zip(order, order[1:]) if isinstance(b, NORMS)}


def unit_variance(module):
    """Hooks that scale a layer by what its first batch gives."""
    normed, handles = follows_norm(module), []

    def hook(m, _, y):
        std = y.std()
        if torch.isfinite(std) and std > 1e-6:
            m.weight.data /= std
            if m.bias is not None:
                m.bias.data /= std
            return y / std
        return None

    for m in module.modules():
        if isinstance(m, LINEAR) and m not in normed:
            handles.append(m.register_forward_hook(hook))
    return handles


def spread(module, x, strength):
    """The last layer reads the features' largest differences between pictures, in random mixtures: its outputs have mean 0 and
    standard deviation `strength`. Smaller differences would need larger weights, which nothing but noise would pass."""
    last = {}

    def hook(m, inputs, y):
        last["layer"], last["x"], last["y"] = m, inputs[0], y

    handles = [m.register_forward_hook(hook) for m in module.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    module(x)
    for h in handles:
        h.remove()
    layer, y = last["layer"], last["y"]
    features = last["x"] if isinstance(layer, nn.Linear) else last["x"].movedim(1, -1)
    features = features.reshape(-1, features.shape[-1])
    if layer.weight[0].numel() == features.shape[1] and len(features) > COMPONENTS:
        mean = features.mean(0)
        _, _, directions = torch.pca_lowrank(features[:: max(1, len(features) // 4096)], COMPONENTS)
        mixture = torch.randn(layer.weight.shape[0], COMPONENTS, generator=torch.Generator().manual_seed(1))
        weight = mixture @ directions.T
        weight *= strength / ((features - mean) @ weight.T).std().clamp_min(1e-6)
        layer.weight.data = weight.reshape(layer.weight.shape).contiguous()
        layer.bias = nn.Parameter(-weight @ mean)
    else:  # a larger kernel, groups, or too few pictures
        y = (y if isinstance(layer, nn.Linear) else y.movedim(1, -1)).reshape(-1, layer.weight.shape[0])
        scale = strength / y.std().clamp_min(1e-6)
        bias = torch.zeros(layer.weight.shape[0]) if layer.bias is None else layer.bias.data
        layer.weight.data *= scale
        layer.bias = nn.Parameter((bias - y.mean(0)) * scale)


@torch.no_grad()
def calibrate(module, x, seed=0, strength=2.0):
    """`x`: a batch of prepared pictures. The module ends in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    randomize(module, generator)
    module.eval()
    for m in module.modules():
        if isinstance(m, NORMS):
            m.train()
            m.reset_running_stats()
            m.momentum = None  # the mean of all batches, here the one batch's
    handles = unit_variance(module)
    module(x)
    for h in handles:
        h.remove()
    for m in module.modules():
        if isinstance(m, NORMS):
            m.reset_running_stats()
    module(x)
    module.eval()
    if strength:
        spread(module, x, strength)
    y = module(x)
    first = y[0] if isinstance(y, (list, tuple)) else y
    if not torch.isfinite(first).all():
        raise ValueError("the network's outputs are not finite")
    return module
