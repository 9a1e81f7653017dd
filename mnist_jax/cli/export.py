"""Writes a trained network in a form that others load."""

import itertools

from mnist_jax.cli.options import ExportOptions
from mnist_jax.cli.program import load_trained
from mnist_jax.data import load_dataset
from mnist_jax.deploy import export
from mnist_jax.deploy.reading import load_doubts
from mnist_jax.errors import InputError
from mnist_jax.runs.files import replace_file
from mnist_jax.runs.weights import READER


def main(options: ExportOptions) -> None:
    """Loads, converts and writes."""
    names = tuple(itertools.chain(*options.arch)) or (() if options.run_dir else (READER,))
    networks = [load_trained(options.run_dir, name) for name in names or (None,)]
    if len(networks) > 1 and options.format != "web":
        raise InputError(f"format {options.format} is for one network, not {len(networks)}; name one, or use web")
    try:
        if options.format == "web":
            doubts = list(map(load_doubts().get, names))
            content = export.to_page(networks, load_dataset("mnist").test.images[0], doubts).encode()
        elif options.format == "stablehlo":
            content = export.to_stablehlo(networks[0])
        else:
            content = export.to_onnx(networks[0])
    except ImportError as error:
        extra = "onnx" if options.format == "onnx" else "export"
        raise InputError(f"format {options.format} needs more: pip install 'mnist-jax[{extra}]' ({error})") from error
    replace_file(options.out, content)
    print(f"{options.out}: {options.out.stat().st_size / 1000:.0f} kB")
