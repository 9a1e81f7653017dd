"""The exercise elsewhere: the notebooks and public runs; and the tables of `docs/exercise.md`, layer by layer."""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mnist_jax.layers import FLAX
from mnist_jax.models import IMAGE_SHAPE, make_model
from mnist_jax.summary import count_params

# The notebooks' figures in percent, one seed, 15 epochs: best epoch's test accuracy; last epoch's, test and train.
NOTEBOOKS = {
    "basic": (98.80, 98.76, 99.44),
    "lighter": (98.72, 98.72, 99.01),
    "gap": (98.28, 98.28, 98.17),
    "bn_dropout": (99.42, 99.39, 99.27),
}

# Public runs of small networks: parameters, best epoch's test accuracy in percent, epochs, where. They are of one seed,
# that of 697 parameters the best of some 700 runs; the network of 6,188 has a dense layer.
PUBLIC = (
    (575, 98.0, None, "hexhowells, neural golfing"),
    (697, 99.03, 2000, "Parameter-Efficient-MNIST"),
    (1_936, 99.1, 75, "mnist-minimal-model"),
    (4_838, 99.42, 12, "woolly-of-cv"),
    (6_188, 99.54, 15, "MNIST-CNN-COLAB, model 3"),
    (7_070, 99.4, 15, "nitin-vig/ERAv4S6"),
    (7_918, 99.52, 15, "snehanshu-raj/ERA, assignment 6"),
    (8_932, 99.50, 15, "era-s6-ram"),
)


class Row(NamedTuple):
    """A convolution or a pool; `params` has the kernel's and those of the batch norm behind it."""

    name: str
    kernel: str
    channels: str
    size: int
    field: int
    params: tuple[int, ...] = ()


def layers_table(arch: str) -> Iterator[str]:
    """Convolutions and pools in their order, with the receptive field in pixels and the multiply-adds for one image."""
    yield "| layer | kernel | channels | output size | receptive field | parameters | multiply-adds |"
    yield "|---|---|---|---|---|---|---|"
    rows = _rows(arch)
    products = 0
    for row in rows:
        own = row.params[0] * row.size**2 if row.params else 0
        products += own
        cells = (row.size, row.field, " + ".join(f"{size:,}" for size in row.params), f"{own:,}" if own else "")
        yield f"| {row.name} | {row.kernel} | {row.channels} | " + " | ".join(map(str, cells)) + " |"
    yield f"| sum | | | | | {sum(sum(row.params) for row in rows):,} | {products:,} |"


def _rows(arch: str) -> list[Row]:
    """Follows an image through a network; a value after k pools is 2**k pixels from its neighbor."""
    rows: list[Row] = []
    modules: list[tuple[str, ...]] = []  # The names of the parameters of each row.
    size, field, whole, step = IMAGE_SHAPE[0], 1, IMAGE_SHAPE[0], 1

    def add(name: str, kernel: str, channels: str, output: int, reach: int, *params: str) -> None:
        nonlocal size, field
        size, field = output, min(field + reach * step, whole)
        rows.append(Row(name, kernel, channels, size, field))
        modules.append(params)

    def max_pool(x: jax.Array) -> jax.Array:
        nonlocal step
        pooled = FLAX.max_pool(x)
        add("max pool", "2x2", "", pooled.shape[1], 1)
        step *= 2
        return pooled

    def norm_max_pool(**options):
        norm = FLAX.batch_norm(use_scale=False, **options)
        return lambda x: max_pool(norm(x))

    def record(call, args, kwargs, context):
        nonlocal whole
        module: Any = context.module
        output = call(*args, **kwargs)
        if isinstance(context.module, nn.Conv) and context.method_name == "__call__":
            (_, height, _, inputs), outputs = args[0].shape, output.shape[-1]
            if height < size and not rows:
                whole = height
                add("crop", "", "", height, 0)
            elif height < size:
                add("average pool", f"{size}x{size}", "", height, size - 1)
            length = module.kernel_size[0]
            padded = ", padded" if output.shape[1] == height and length > 1 else ""
            depthwise = ", one per channel" if module.feature_group_count > 1 else ""
            kernel = f"{length}x{length}{padded}{depthwise}"
            add(module.name, kernel, f"{inputs} to {outputs}", output.shape[1], length - 1, module.name)
        elif isinstance(context.module, nn.BatchNorm) and context.method_name == "__call__":
            modules[-1] += (module.name,)
        return output

    model = make_model(arch, layers=FLAX._replace(max_pool=max_pool, batch_norm_max_pool=norm_max_pool))
    init = partial(model.init, train=False)
    with nn.intercept_methods(record):
        params = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, *IMAGE_SHAPE)))["params"]
    sizes = (tuple(count_params(params[name]) for name in names) for names in modules)
    return [row._replace(params=own) for row, own in zip(rows, sizes, strict=True)]
