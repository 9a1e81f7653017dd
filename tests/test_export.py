import base64
import functools
import json
import re
import shutil
import subprocess
import sys
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import as_trained, initial_variables

from mnist_jax import ARCHS, load_pretrained, make_model, models, predict
from mnist_jax.deploy import export

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


def test_a_network_that_the_page_cannot_run_is_named():
    """An operation that no `Op` can say."""

    class Tanh(models.Network):
        @nn.compact
        def __call__(self, x, *, train):
            return jnp.tanh(x)

    with pytest.raises(NotImplementedError, match="no operation for tanh"):
        export.operations(as_trained(Tanh(), {}))


def test_a_format_whose_extra_is_absent(script, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    status, out, err = script("export.py", "--arch", "bn_dropout", "--format", "onnx", "--out", "x.onnx")
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
    return export.to_page(networks, mnist.test.images[0])


def test_the_page_is_small_and_whole_in_itself(shipped, page, mnist):
    largest = export.to_page([shipped] * 3, mnist.test.images[0])
    assert len(largest.encode()) < 150_000
    assert not re.search(r"https?:|@import|url\(|src=|href=", page)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_the_page_computes_what_flax_does(networks, page, mnist, tmp_path):
    """In a browser, on a hundred test images; it shows a digit before the first stroke, and then what is drawn."""
    images = mnist.test.images[:100]
    script = """
      const shown = document.querySelector(".best span").textContent;
      const titles = Array.from(document.querySelectorAll("summary"), title => title.textContent);
      const all = Uint8Array.from(atob("IMAGES"), c => c.charCodeAt(0));
      const logits = NETWORKS.map(network =>
        [...Array(100).keys()].map(n => predict(network, all.subarray(784 * n, 784 * n + 784))));
      const drawn = new Uint8Array(280 * 280), image = all.subarray(0, 784);
      for (let y = 0; y < 280; y++) for (let x = 0; x < 280; x++)
        drawn[280 * y + x] = image[28 * Math.floor(y / 10) + Math.floor(x / 10)];
      const centred = Array.from(centre(drawn, 280));
      empty(); line([80, 40], [70, 150]); line([70, 150], [200, 150]); line([170, 60], [160, 250]); look();
      const best = document.querySelector(".best span").textContent;
      const maps = Array.from(document.querySelector("details").querySelectorAll(".maps"), row => row.textContent);
      document.body.innerHTML = "";
      document.title = JSON.stringify({ shown, titles, logits, centred, best, maps });
    """.replace("IMAGES", base64.b64encode(images.tobytes()).decode())
    (tmp_path / "page.html").write_text(page.replace("</script>", script + "</script>"), encoding="utf-8")
    command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom", f"file://{tmp_path}/page.html"]
    dom = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    found = json.loads(re.search("<title>(.*?)</title>", dom, re.DOTALL).group(1))
    for trained, logits in zip(networks, found["logits"], strict=True):
        np.testing.assert_allclose(logits, predict(trained, images), atol=1e-3)
    # A test image drawn ten times as large comes back as it was.
    np.testing.assert_allclose(np.array(found["centred"]).reshape(28, 28), images[0, :, :, 0], atol=1)
    assert (found["shown"], found["best"]) == (str(mnist.test.labels[0]), "4")
    assert found["titles"] == ["bn_dropout, 9,920 parameters", f"{LAYOUT}, 730 parameters"]
    assert found["maps"][0] == "conv1: 16 of 26x26"
    assert len(found["maps"]) == 7
