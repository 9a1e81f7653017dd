"""The four networks of the notebooks in PyTorch, to compare with."""

import torch
from torch import nn


def conv_relu(channels_in, channels_out, kernel=3, padding=0):
    return [nn.Conv2d(channels_in, channels_out, kernel, padding=padding, bias=False), nn.ReLU()]


def plain(c1, c2, c3, c4, c5, c6):
    """`basic` and `lighter`, by their channels."""
    return nn.Sequential(
        *conv_relu(1, c1),
        *conv_relu(c1, c2),
        *conv_relu(c2, c3),
        nn.MaxPool2d(2),
        *conv_relu(c3, c4, 1),
        *conv_relu(c4, c5),
        *conv_relu(c5, c6),
        *conv_relu(c6, 10, 1),
        nn.Conv2d(10, 10, 7, bias=False),
        nn.Flatten(),
    )


def pooled(dropout=None):
    """`gap`, or `bn_dropout` where a dropout rate is given."""

    def norm_drop(channels):
        return [] if dropout is None else [nn.BatchNorm2d(channels), nn.Dropout(dropout)]

    return nn.Sequential(
        *conv_relu(1, 16),
        *norm_drop(16),
        *conv_relu(16, 16),
        *norm_drop(16),
        *conv_relu(16, 16, 1),
        nn.MaxPool2d(2),
        *conv_relu(16, 16),
        *norm_drop(16),
        *conv_relu(16, 16),
        *norm_drop(16),
        *conv_relu(16, 10),
        *norm_drop(10),
        *conv_relu(10, 10, padding=1),
        *norm_drop(10),
        nn.AvgPool2d(6),
        nn.Conv2d(10, 10, 1, bias=False),
        nn.Flatten(),
    )


def create(arch, dropout=0.05):
    """A network by name."""
    if arch == "basic":
        return plain(32, 64, 128, 32, 64, 128)
    if arch == "lighter":
        return plain(16, 16, 16, 16, 16, 10)
    return pooled(None if arch == "gap" else dropout)


def load(network, variables):
    """Copies Flax variables into a network, layer by layer in order."""
    params, stats = variables["params"], variables.get("batch_stats", {})
    convs = [module for module in network if isinstance(module, nn.Conv2d)]
    norms = [module for module in network if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        for conv, name in zip(convs, sorted(name for name in params if name.startswith("conv")), strict=True):
            conv.weight.copy_(torch.tensor(params[name]["kernel"]).permute(3, 2, 0, 1))
        for norm, name in zip(norms, sorted(stats), strict=True):
            norm.weight.copy_(torch.tensor(params[name]["scale"]))
            norm.bias.copy_(torch.tensor(params[name]["bias"]))
            norm.running_mean.copy_(torch.tensor(stats[name]["mean"]))
            norm.running_var.copy_(torch.tensor(stats[name]["var"]))


def unload(network, like):
    """The network's weights as a tree like `like`."""
    convs = [module for module in network if isinstance(module, nn.Conv2d)]
    norms = [module for module in network if isinstance(module, nn.BatchNorm2d)]
    convolutions = sorted(name for name in like["params"] if name.startswith("conv"))
    stats = like.get("batch_stats", {})
    params = {
        name: {"kernel": conv.weight.detach().permute(2, 3, 1, 0).numpy()}
        for name, conv in zip(convolutions, convs, strict=True)
    }
    for name, norm in zip(sorted(stats), norms, strict=True):
        params[name] = {"scale": norm.weight.detach().numpy(), "bias": norm.bias.detach().numpy()}
    running = {
        name: {"mean": norm.running_mean.numpy(), "var": norm.running_var.numpy()}
        for name, norm in zip(sorted(stats), norms, strict=True)
    }
    return {"params": params, "batch_stats": running}
