"""The notebook's recipe in PyTorch, timed."""

import importlib
import time
from typing import Any

import numpy as np

from mnist_jax.data import Split, load_dataset
from mnist_jax.data.bundled import MEAN, STD
from mnist_jax.lab import baselines
from mnist_jax.runtime import cores

STEPS = 200


def epoch_seconds(arch: str, batch_size: int) -> dict[str, float]:
    """Seconds of one epoch as the notebook has it, on images read one by one through a `DataLoader`.

    Returns:
      `train_seconds` and `test_seconds` of an epoch, and `steps_seconds` of 200 steps on images that lie ready.
    """
    from PIL import Image

    torch = importlib.import_module("torch")

    class Images(torch.utils.data.Dataset):
        """What torchvision's MNIST with `ToTensor` and `Normalize` does for each image."""

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
    network = baselines.torch_network(arch)
    optimizer = torch.optim.SGD(network.parameters(), 0.01, 0.9)

    def step(images: Any, labels: Any) -> None:
        optimizer.zero_grad()
        torch.nn.functional.nll_loss(torch.log_softmax(network(images), 1), labels).backward()
        optimizer.step()

    def seconds(batches: Any, call: Any) -> float:
        start = time.perf_counter()
        for images, labels in batches:
            call(images, labels)
        return time.perf_counter() - start

    ready = next(iter(train))
    seconds([ready] * 10, step)
    steps_seconds = seconds([ready] * STEPS, step)
    train_seconds = seconds(train, step)
    network.eval()
    with torch.no_grad():
        test_seconds = seconds(test, lambda images, labels: network(images).argmax(1).eq(labels).sum().item())
    return {"train_seconds": train_seconds, "test_seconds": test_seconds, "steps_seconds": steps_seconds}
