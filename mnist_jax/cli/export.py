"""Writes a trained network in a form that others load."""

import dataclasses
from pathlib import Path

import tyro

from mnist_jax.cli.program import load_trained, writing
from mnist_jax.data import load_dataset
from mnist_jax.deploy import export
from mnist_jax.deploy.reading import load_doubts
from mnist_jax.errors import InputError
from mnist_jax.runs.weights import READER

# The extra that each format needs, if any.
FORMATS: dict[str, str | None] = {"web": None, "stablehlo": "export", "onnx": "onnx"}


@dataclasses.dataclass(frozen=True)
class Options:
    """Writes a trained network in a form that others load.

    web: one HTML file to draw a digit on, with the weights inside, which needs neither the internet nor a server;
    several networks answer side by side. stablehlo: a program for CPU, CUDA and TPU from images uint8 [batch, height,
    width, channels] to logits, for jax.export.deserialize; needs the extra export. onnx: the same for ONNX Runtime and
    other readers of ONNX; needs the extra onnx.

    Exit status: 0 done, 2 bad input, 4 cannot write.

    Example: mnist-jax export --format web --arch bn_dropout --out digit.html
    """

    out: Path
    """File to write."""
    run_dir: tyro.conf.Positional[Path | None] = None
    """Directory of a finished run."""
    arch: tuple[str, ...] = ()
    """In place of a run: shipped weights to export; for web, one or several. If not given: accurate-held-out."""
    format: str = "web"
    """What to write: web, stablehlo or onnx."""


def main(options: Options) -> None:
    """Loads, converts and writes."""
    if options.format not in FORMATS:
        raise InputError(f"unknown format {options.format!r}; choose from {', '.join(FORMATS)}")
    names = options.arch or (() if options.run_dir else (READER,))
    networks = [load_trained(options.run_dir, name) for name in names or (None,)]
    if len(networks) > 1 and options.format != "web":
        raise InputError(f"format {options.format} is for one network, not {len(networks)}; name one, or use web")
    try:
        if options.format == "web":
            content = export.to_page(
                networks, load_dataset("mnist").test.images[0], list(map(load_doubts().get, names))
            )
        elif options.format == "stablehlo":
            content = export.to_stablehlo(networks[0])
        else:
            content = export.to_onnx(networks[0])
    except ImportError as error:
        extra = FORMATS[options.format]
        raise InputError(f"format {options.format} needs more: pip install 'mnist-jax[{extra}]' ({error})") from error
    with writing(options.out, "--out"):
        options.out.write_bytes(content.encode() if isinstance(content, str) else content)
    print(f"{options.out}: {options.out.stat().st_size / 1000:.0f} kB")
