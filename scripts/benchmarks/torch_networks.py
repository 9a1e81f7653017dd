"""The networks and the exercise's recipe in PyTorch, for tests and benchmarks; needs torch."""

import importlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mnist_jax.data import Split, load_dataset
from mnist_jax.data.bundled import MEAN, STD
from mnist_jax.layouts import Block
from mnist_jax.models import Stack, make_model
from mnist_jax.runtime import backend, cores


def torch_device() -> str:
    """PyTorch's name of the device that JAX computes on; "cpu" where PyTorch cannot."""
    return "cuda" if backend() == "gpu" and importlib.import_module("torch").cuda.is_available() else "cpu"


def torch_network(arch: str, dropout: float = 0.05) -> Any:
    """Builds a network as a `torch.nn.Sequential`: float32 [B, 1, 28, 28] to logits [B, 10]."""
    nn = importlib.import_module("torch.nn")

    model = make_model(arch)
    if isinstance(model, Stack):
        return nn.Sequential(*_torch_stack(model.blocks), nn.Flatten())

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


def _torch_stack(blocks: Sequence[Block]) -> Iterator[Any]:
    """The layers of a layout; shared kernels are the same object."""
    nn = importlib.import_module("torch.nn")

    convolutions, channels = [], 1
    for block in blocks:
        if block.crop:
            yield nn.ZeroPad2d(-block.crop)
        if block.again:
            convolutions.append(convolutions[block.again - 1])
        else:
            size = {"kernel_size": block.size, "padding": block.size // 2 if block.padded else 0, "bias": False}
            depthwise = [nn.Conv2d(channels, channels, groups=channels, **size)] if block.separable else []
            rest = {"kernel_size": 1, "bias": False} if block.separable else size
            convolutions.append([*depthwise, nn.Conv2d(channels, block.channels, **rest)])
        norm = nn.BatchNorm2d(block.channels)
        norm.weight.requires_grad_(False)  # Stays 1, because our batch norm has no scale.
        for layer in (*convolutions[-1], norm) if block.fixed else ():
            layer.requires_grad_(False)
        yield from (*convolutions[-1], norm, nn.ReLU(), *([nn.MaxPool2d(2)] if block.pool else []))
        channels = block.channels
    yield from (nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, 10, 1, bias=False))


def variables_of(network: Any, like: dict[str, Any]) -> dict[str, Any]:
    """A PyTorch network's tensors as a tree like Flax's `like`: writable views in Flax's layout."""
    nn = importlib.import_module("torch.nn")

    kinds = ("conv", "depthwise", "bn")
    found = [name for name in like["params"] if name.startswith(kinds)]
    found.sort(key=lambda name: int(name.lstrip("abcdefghijklmnopqrstuvwxyz")))
    names = {kind: iter([name for name in found if name.startswith(kind)]) for kind in kinds}
    params, statistics = {}, {}
    for module in dict.fromkeys(network):  # Each module once, even if used again.
        if isinstance(module, nn.Conv2d):
            layer = next(names["conv" if module.groups == 1 else "depthwise"])
            params[layer] = {"kernel": module.weight.detach().permute(2, 3, 1, 0)}
        elif isinstance(module, nn.BatchNorm2d):
            layer = next(names["bn"])
            scale = {"scale": module.weight.detach()} if module.weight.requires_grad else {}
            params[layer] = {**scale, "bias": module.bias.detach()}
            statistics[layer] = {"mean": module.running_mean, "var": module.running_var}
    return {"params": params, **({"batch_stats": statistics} if statistics else {})}


def epoch_seconds(arch: str, batch_size: int) -> dict[str, float]:
    """Times one epoch as in the exercise's notebook, with images read one by one through a `DataLoader`.

    Each batch goes to the GPU, if JAX computes on one.

    Returns:
      `train_seconds` and `test_seconds` of the epoch.
    """
    from PIL import Image

    torch = importlib.import_module("torch")

    class Images(torch.utils.data.Dataset):
        """Does what torchvision's MNIST with `ToTensor` and `Normalize` does for each image."""

        def __init__(self, split: Split) -> None:
            self.images, self.labels = torch.from_numpy(split.images[..., 0]), split.labels.tolist()

        def __len__(self) -> int:
            return len(self.labels)

        def __getitem__(self, i: int) -> tuple[Any, int]:
            image = Image.fromarray(self.images[i].numpy())
            pixels = torch.from_numpy(np.array(image, np.uint8, copy=True)).view(28, 28, 1)
            tensor = pixels.permute(2, 0, 1).contiguous().to(torch.float32).div(255)
            return tensor.sub_(MEAN).div_(STD), self.labels[i]

    torch.set_num_threads(len(cores()))
    mnist = load_dataset("mnist")
    train, test = (
        torch.utils.data.DataLoader(Images(split), batch_size, shuffle=shuffle)
        for split, shuffle in ((mnist.train, True), (mnist.test, False))
    )
    device = torch_device()
    network = torch_network(arch).to(device)
    optimizer = torch.optim.SGD(network.parameters(), 0.01, 0.9)

    def step(images: Any, labels: Any) -> None:
        optimizer.zero_grad()
        torch.nn.functional.nll_loss(torch.log_softmax(network(images), 1), labels).backward()
        optimizer.step()

    def seconds(batches: Any, call: Any) -> float:
        start = time.perf_counter()
        for images, labels in batches:
            call(images.to(device), labels.to(device))
        if device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    seconds([next(iter(train))] * 10, step)
    train_seconds = seconds(train, step)
    network.eval()
    with torch.no_grad():
        test_seconds = seconds(test, lambda images, labels: network(images).argmax(1).eq(labels).sum().item())
    return {"train_seconds": train_seconds, "test_seconds": test_seconds}
