"""Gives a network without trained weights the activations of one that has them.

Freshly initialised, a deep network is degenerate: signals vanish or explode where there is no normalization, residual branches
are silent (a last BatchNorm of weight 0, layer scales of 1e-6), and the logits of all pictures are the same. Quantized, such a
network shows nothing. Here every BatchNorm gets random weights and the statistics of real pictures, every layer
without one is scaled to outputs of unit variance (Mishkin and Matas, "All you need is a good init", 2016), and the last layer is
shifted and scaled so that pictures differ."""

import torch
from torch import nn

LINEAR = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def randomize(module, generator):
    """Silent branches speak; BatchNorm's channels differ, as trained ones do."""
    for m in module.modules():
        if isinstance(m, NORMS) and m.affine:
            m.weight.data.uniform_(0.6, 1.4, generator=generator)
            m.bias.data.normal_(0, 0.3, generator=generator)
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
    """The last linear layer's outputs differ from picture to picture: mean 0 and standard deviation `strength` in each channel."""
    last = {}

    def hook(m, _, y):
        last["layer"], last["y"] = m, y

    handles = [m.register_forward_hook(hook) for m in module.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    module(x)
    for h in handles:
        h.remove()
    layer, y = last["layer"], last["y"].detach()
    y = y.transpose(1, -1) if isinstance(layer, nn.Linear) else y
    flat = y.transpose(0, 1).flatten(1)
    if flat.shape[0] != layer.weight.shape[0] or flat.shape[1] < 2:
        return
    mean, std = flat.mean(1), flat.std(1)
    std = torch.where(std > 1e-6, std, torch.ones_like(std)) / strength
    layer.weight.data /= std.reshape(-1, *[1] * (layer.weight.dim() - 1))
    bias = torch.zeros_like(mean) if layer.bias is None else layer.bias.data
    layer.bias = nn.Parameter((bias - mean) / std)


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
