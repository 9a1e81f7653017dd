"""Makes the pictures in docs/images/."""

import dataclasses
import io
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw
from rich.console import Console
from rich.text import Text

from mnist_jax.cli import run
from mnist_jax.errors import InputError

SHOWN = "uv run scripts/train.py --arch swift"
# Digits as a person with a mouse would draw them on a pad of 280 pixels: lines through these points.
STROKES = {
    "three": [
        [(85, 75), (115, 52), (165, 55), (182, 90), (130, 132)],
        [(130, 132), (180, 155), (186, 200), (155, 228), (115, 230), (82, 210)],
    ],
    "four": [[(165, 45), (70, 165), (215, 160)], [(172, 120), (165, 235)]],
    "seven": [[(75, 60), (135, 55), (200, 58), (165, 120), (140, 180), (128, 235)]],
}
# Draws one on the page.
HAND = """
<script>
addEventListener("load", () => setTimeout(() => {
  document.getElementById("clear").click();
  const pad = document.getElementById("pad"), box = pad.getBoundingClientRect();
  const send = (type, [x, y]) => pad.dispatchEvent(new PointerEvent(type, {
    clientX: box.left + x, clientY: box.top + y, pointerId: 1, button: 0, buttons: 1, isPrimary: true, bubbles: true}));
  for (const points of STROKES) {
    send("pointerdown", points[0]);
    points.slice(1).forEach((point) => send("pointermove", point));
    send("pointerup", points[points.length - 1]);
  }
}, 500));
</script>
"""


@dataclasses.dataclass(frozen=True)
class Options:
    """Makes the pictures of README and the site: a run in a terminal, its report, the page to draw on; drawn digits.

    Trains swift in a temporary folder, and needs Chromium.

    Example: python scripts/screenshots.py --out docs/images
    """

    out: Path = Path(__file__).parent.parent / "docs" / "images"
    """Folder to write."""


def drawing(name: str, pen: int, turned: float = 0.0) -> Image.Image:
    """A digit on white paper, drawn with a pen of this many pixels and turned by this many degrees."""
    image = Image.new("L", (280, 280), 255)
    for points in STROKES[name]:
        ImageDraw.Draw(image).line(points, fill=30, width=pen, joint="curve")
    return image.rotate(turned, Image.Resampling.BICUBIC, fillcolor=255)


def digits(out: Path) -> None:
    """Writes drawn digits: three to be read, and a class of two people."""
    written = {f"digits/{name}.png": drawing(name, 14) for name in STROKES}
    for label, name in ((3, "three"), (4, "four"), (7, "seven")):
        written |= {f"class/ann/{label}_1.png": drawing(name, 6), f"class/ben/{label}_1.png": drawing(name, 24, 12)}
    for path, image in written.items():
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        image.save(out / path, optimize=True)


def terminal(folder: Path, picture: Path) -> None:
    """Runs the command; writes what it printed as a drawing, without the lines of the progress bar."""
    command = ["mnist-jax", "train", "--arch", "swift"]
    env = os.environ | {"FORCE_COLOR": "1", "TTY_INTERACTIVE": "0", "COLUMNS": "80"}
    said = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=True).stdout
    console = Console(record=True, width=80, file=io.StringIO(), force_terminal=True)
    console.print(f"$ {SHOWN}", style="bold", highlight=False)
    for line in said.splitlines():
        if "images/s" not in line:
            console.print(Text.from_ansi(line))
    drawing = console.export_svg(title=SHOWN)
    # The font would be fetched from elsewhere.
    picture.write_text(re.sub(r"@font-face \{.*?\}\s*", "", drawing, flags=re.DOTALL), encoding="utf-8")


def screenshot(page: Path, picture: Path, size: str) -> None:
    """Writes what Chromium shows of a page."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise InputError("Chromium is not installed; install it, and run this again")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=20000"]
    target = f"--screenshot={picture.absolute()}"
    subprocess.run([browser, *options, f"--window-size={size}", target, page.as_uri()], check=True, capture_output=True)


def main(options: Options) -> None:
    """Makes all of them."""
    digits(options.out)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        terminal(folder, options.out / "terminal.svg")
        (report,) = folder.glob("runs/*/report.html")
        screenshot(report, options.out / "report.png", "1000,760")
        page = folder / "draw.html"
        names = ("accurate-held-out", "small", "swift")
        command = ["mnist-jax", "export", "--arch", *names, "--out", page.name]
        subprocess.run(command, cwd=folder, check=True)
        page.write_text(page.read_text("utf-8") + HAND.replace("STROKES", json.dumps(STROKES["three"])), "utf-8")
        screenshot(page, options.out / "draw.png", "1000,760")


if __name__ == "__main__":
    run(main, Options)
