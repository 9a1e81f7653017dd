"""The notebooks' networks in PyTorch, to compare with: for tests and benchmarks, where torch is installed."""

from typing import Any

import numpy as np


def torch_network(arch: str, dropout: float = 0.05) -> Any:
    """A network of the notebooks as a `torch.nn.Sequential`: float32 [B, 1, 28, 28] to logits [B, 10]."""
    from torch import nn

    def conv(channels_in, channels_out, kernel=3, padding=0, norm=False):
        layers = [nn.Conv2d(channels_in, channels_out, kernel, padding=padding, bias=False), nn.ReLU()]
        return layers + ([nn.BatchNorm2d(channels_out), nn.Dropout(dropout)] if norm else [])

    if arch in ("basic", "lighter"):
        c1, c2, c3, c4, c5, c6 = (32, 64, 128, 32, 64, 128) if arch == "basic" else (16, 16, 16, 16, 16, 10)
        body = [*conv(1, c1), *conv(c1, c2), *conv(c2, c3), nn.MaxPool2d(2), *conv(c3, c4, 1), *conv(c4, c5)]
        body += [*conv(c5, c6), *conv(c6, 10, 1), nn.Conv2d(10, 10, 7, bias=False)]
    else:
        norm = arch == "bn_dropout"
        body = [*conv(1, 16, norm=norm), *conv(16, 16, norm=norm), *conv(16, 16, 1), nn.MaxPool2d(2)]
        body += [*conv(16, 16, norm=norm), *conv(16, 16, norm=norm), *conv(16, 10, norm=norm)]
        body += [*conv(10, 10, padding=1, norm=norm), nn.AvgPool2d(6), nn.Conv2d(10, 10, 1, bias=False)]
    return nn.Sequential(*body, nn.Flatten())


def load_variables(network: Any, variables: dict[str, Any]) -> None:
    """Copies Flax variables into a PyTorch network, layer by layer in order."""
    import torch

    params, stats = variables["params"], variables.get("batch_stats", {})
    convs, norms = _layers(network)
    with torch.no_grad():
        for conv, name in zip(convs, _convolutions(params), strict=True):
            conv.weight.copy_(torch.tensor(np.array(params[name]["kernel"])).permute(3, 2, 0, 1))
        for norm, name in zip(norms, sorted(stats), strict=True):
            norm.weight.copy_(torch.tensor(np.array(params[name]["scale"])))
            norm.bias.copy_(torch.tensor(np.array(params[name]["bias"])))
            norm.running_mean.copy_(torch.tensor(np.array(stats[name]["mean"])))
            norm.running_var.copy_(torch.tensor(np.array(stats[name]["var"])))


def read_variables(network: Any, like: dict[str, Any]) -> dict[str, Any]:
    """A PyTorch network's weights as Flax variables, a tree of NumPy arrays shaped as `like`."""
    convs, norms = _layers(network)
    params, stats = {}, {}
    for name, conv in zip(_convolutions(like["params"]), convs, strict=True):
        params[name] = {"kernel": conv.weight.detach().permute(2, 3, 1, 0).numpy()}
    for name, norm in zip(sorted(like.get("batch_stats", {})), norms, strict=True):
        params[name] = {"scale": norm.weight.detach().numpy(), "bias": norm.bias.detach().numpy()}
        stats[name] = {"mean": norm.running_mean.numpy(), "var": norm.running_var.numpy()}
    return {"params": params, "batch_stats": stats}


def _layers(network: Any) -> tuple[list, list]:
    from torch import nn

    convs = [module for module in network if isinstance(module, nn.Conv2d)]
    return convs, [module for module in network if isinstance(module, nn.BatchNorm2d)]


def _convolutions(params: dict[str, Any]) -> list[str]:
    return sorted(name for name in params if name.startswith("conv"))
