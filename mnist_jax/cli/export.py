"""Writes a trained network in a form that others load."""

from mnist_jax.cli.options import ExportOptions
from mnist_jax.cli.program import load_trained, writing
from mnist_jax.data import load_dataset
from mnist_jax.deploy import export
from mnist_jax.deploy.reading import load_doubts
from mnist_jax.errors import InputError
from mnist_jax.runs.weights import READER

# The extra that each format needs, if any.
FORMATS: dict[str, str | None] = {"web": None, "stablehlo": "export", "onnx": "onnx"}


def main(options: ExportOptions) -> None:
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
