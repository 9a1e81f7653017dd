"""The exercise elsewhere: the notebooks and public runs; and the tables of `docs/exercise.md`, layer by layer."""

from collections.abc import Iterator

from mnist_jax.models import make_model
from mnist_jax.summary import abstract_variables, layers_of

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

POOLS = {"crop": "crop", "max_pool": "max pool", "global_pool": "average pool"}


def layers_table(arch: str) -> Iterator[str]:
    """Convolutions and pools in their order, with the receptive field in pixels and the multiply-adds for one image.

    The parameters of a convolution are its kernel's and those of the batch norm behind it.
    """
    yield "| layer | kernel | output | receptive field | parameters | multiply-adds |"
    yield "|---|---|---|---|---|---|"
    model = make_model(arch)
    layers, params = layers_of(model), abstract_variables(model)["params"]
    rows: list[list[str]] = []
    for layer in layers:
        name, size = POOLS.get(layer.kind, layer.name), "x".join(map(str, layer.shape))
        row = [name, "", size, f"{max(layer.receptive_field or (0,))}", "", ""]
        if layer.kind == "Conv":
            row[1] = "x".join(map(str, params[name]["kernel"].shape[:2]))
            row[4:] = f"{layer.params:,}", f"{layer.multiply_adds:,}"
        if layer.kind in ("Conv", *POOLS):
            rows.append(row)
        elif layer.kind == "BatchNorm":
            rows[-1][4] += f" + {layer.params:,}"
    yield from (f"| {' | '.join(row)} |" for row in rows)
    total, work = (sum(getattr(layer, name) for layer in layers) for name in ("params", "multiply_adds"))
    yield f"| sum | | | | {total:,} | {work:,} |"
