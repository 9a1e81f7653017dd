import json
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from conftest import assert_refused
from measure_pictures import generated_letter, generated_noise, generated_row, score
from PIL import Image

from mnist_jax import load_pretrained, predict
from mnist_jax.deploy import images, reading
from mnist_jax.deploy.digits import Row, fit_box, in_mnist_form, to_digit, to_row
from mnist_jax.deploy.reading import Answer
from mnist_jax.runs.weights import READER


@pytest.fixture(scope="module")
def pen():
    return load_pretrained(READER)


def on_paper(image, scale=4, paper=230, ink=20, margin=20):
    """A test digit, drawn large and dark on light: float [H, W]."""
    large = Image.fromarray(np.float32(image[..., 0])).resize((28 * scale,) * 2, Image.Resampling.BICUBIC)
    return paper - np.pad(np.asarray(large).clip(0, 255), margin) * ((paper - ink) / 255)


def test_what_is_in_mnists_form_passes_unchanged(mnist):
    for image in mnist.test.images[:1000]:
        grey = image[..., 0].astype(float)
        assert in_mnist_form(grey)
        np.testing.assert_array_equal(to_digit(grey), image)
        assert not in_mnist_form(255 - grey)


SIDE = 28 * 4 + 2 * 20
SPECKS = np.ones((SIDE, SIDE))  # A few dots on the paper, away from the digit.
for y, x in ((4, 4), (8, SIDE - 9), (SIDE - 10, 10)):
    SPECKS[y : y + 3, x : x + 3] = 0.2
FAULTS = {
    "sloped light": lambda grey: grey * np.linspace(0.5, 1, SIDE) * np.linspace(0.8, 1, SIDE)[:, None],
    "faint pencil": lambda grey: 250 - (grey.max() - grey) * (14 / 210),
    "grey paper": lambda grey: grey * 0.4,
    "specks": lambda grey: grey * SPECKS,
    "a bar at the edge": lambda grey: np.where(np.arange(grey.shape[1]) < 6, 30.0, grey),
    "dark paper": lambda grey: 255 - grey,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_digit_is_found_whatever_the_paper_is_like(fault, mnist, pen):
    """The network answers the same to test digits on such paper as to their arrays."""
    images = mnist.test.images[:100]
    seen = np.stack([to_digit(FAULTS[fault](on_paper(image))) for image in images])
    assert (predict(pen, seen).argmax(-1) == predict(pen, images).argmax(-1)).mean() >= 0.98


def test_thin_strokes_become_a_tenth_of_the_digit():
    ring = np.hypot(*(np.mgrid[:200, :200] - 99.5))
    for width in (2, 4, 8):
        seen = fit_box(((ring < 90) & (ring > 90 - width)).astype(float))[14, :, 0]
        assert seen[:14].sum() / 255 == pytest.approx(2, abs=0.7)  # Of 20 pixels, on each side.
    thick = fit_box(((ring < 90) & (ring > 50)).astype(float))[14, :, 0]
    assert thick[:14].sum() / 255 == pytest.approx(4.4, abs=0.5)


def test_rows_are_read_as_numbers(mnist, pen):
    rng = np.random.default_rng(0)
    rows = [generated_row(rng, mnist.test.images, mnist.test.labels) for _ in range(50)]
    answers = reading.read(pen, [to_row(grey.astype(float)) for grey, _ in rows])
    right = [answer.text == wanted for answer, (_, wanted) in zip(answers, rows, strict=True)]
    assert sum(right) >= 45
    assert all(answer.probabilities.shape == (len(answer.text), 10) for answer in answers)
    for answer in answers[:5]:
        assert answer.confidence == pytest.approx(np.prod([shares.max() for shares in answer.probabilities]))


def test_one_digit_is_not_taken_for_a_row(mnist):
    rows = [to_row(on_paper(image)) for image in mnist.test.images[:100]]
    assert [len(row.digits) for row in rows] == [1] * 100
    digit = to_digit(on_paper(mnist.test.images[0]))
    np.testing.assert_array_equal(rows[0].digits[0], digit)


def test_where_a_digit_ends_may_be_uncertain():
    two = np.zeros((60, 100))
    two[10:50, 20:24] = two[10:50, 40:44] = 255.0
    assert not to_row(two).uncertain
    two[10:50, 25:40] = 255.0  # One pixel between them.
    row = to_row(two)
    assert (len(row.digits), row.uncertain) == (2, True)
    assert to_row(np.pad(np.full((20, 60), 255.0), 10)).uncertain  # As wide as three.


def test_letters_are_farther_from_digits_than_digits_are(mnist, pen):
    identity = reading.Doubt(np.eye(3) * 10, np.eye(3), 2.0, 0.0)
    np.testing.assert_allclose(identity.of(np.array([[10.0, 0, 0], [10, 3, 4]])), [-5, 5 - 5])
    doubt, rng = reading.load_doubts()[READER], np.random.default_rng(1)
    letters = np.stack([to_digit(generated_letter(rng).astype(float)) for _ in range(50)])
    inside, outside = (doubt.of(predict(pen, images)) for images in (mnist.test.images[:500], letters))
    assert (inside > doubt.limit).mean() < 0.02
    assert (inside[:, None] < outside).mean() > 0.9  # The area under the curve.


def test_calibrating_takes_the_limit_from_the_digits(mnist):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 4000)
    logits = 8 * np.eye(4)[labels] + rng.normal(size=(4000, 4))
    doubt = reading.calibrate(logits, labels)
    np.testing.assert_allclose(doubt.means, 8 * np.eye(4), atol=0.2)
    np.testing.assert_allclose(doubt.precision, np.eye(4), atol=0.1)
    assert (doubt.of(logits) > doubt.limit).mean() == pytest.approx(0.01, abs=0.001)


def test_remarks_name_what_is_uncertain(mnist, pen):
    two = mnist.test.images[:2]
    sure, unsure = np.zeros((2, 10)), np.zeros((2, 10))
    sure[:, 3], unsure[:, 3], unsure[:, 5] = 9, 1, 0.5
    strange = reading.Doubt(np.zeros((10, 10)), np.eye(10), 1.0, -np.inf)
    with mock.patch.object(reading, "predict", return_value=sure):
        (result,) = reading.read(pen, [Row(two)])
    assert (result.text, result.remarks) == ("33", ())
    with mock.patch.object(reading, "predict", return_value=unsure[:1]):
        (result,) = reading.read(pen, [Row(two[:1], True)], strange)
    share = np.exp(0.5) / (np.exp(1) + np.exp(0.5) + 8)
    assert result.remarks == (f"3 or 5 ({share:.1%})", "may not be a digit", "digits may be split wrongly")


def answer(text, probability):
    return Answer(text, np.array([[probability, 1 - probability]]))


def test_the_score_counts_people_not_pictures():
    """Closed forms: one person wrong in half of the pictures, three always right."""
    pictures = [images.Picture(Path(f"p{i}/1_{j}.png"), f"p{i}", "1") for i in range(4) for j in range(4)]
    result = score(pictures, [answer("7" if i < 2 else "1", 0.95) for i in range(15)] + [None])
    assert (result["pictures"], result["accuracy"], result["sure_and_wrong"], result["people"]) == (16, 13 / 16, 2, 4)
    assert result["confusions"] == [("1", "7", 2), ("1", "-", 1)]
    assert result["calibration_error"] == pytest.approx((15 * 0.95 - 13) / 16)
    assert result["interval"][0] < 13 / 16 < result["interval"][1]


def test_evaluate_scores_pictures_and_names_the_errors(call, mnist, tmp_path):
    first = mnist.test.labels[0]
    assert first != 1
    for person in ("ann", "bob"):
        (tmp_path / person).mkdir()
        for i in range(5):
            label = mnist.test.labels[i] if (person, i) != ("bob", 0) else 1
            Image.fromarray(np.uint8(on_paper(mnist.test.images[i]))).save(tmp_path / person / f"{label}_{i}.png")
    command = "evaluate", "--pictures", tmp_path
    status, out, err = call(*command)
    wrong, *lines = out.splitlines()
    assert (status, err) == (0, "")
    assert wrong.startswith(f"{tmp_path / 'bob' / '1_0.png'}: {first}  ")
    assert lines == ["ann: 5 of 5", "bob: 4 of 5", "all 10 by 2 people: 90.00%"]
    assert json.loads(call(*command, "--json")[1])["people"] == {"ann": [5, 5], "bob": [5, 4]}
    (tmp_path / "bob" / "x_1.png").write_bytes((tmp_path / "bob" / "1_0.png").read_bytes())
    assert_refused(call(*command), "x_1.png", "LABEL_*")
    assert_refused(call("evaluate", "--pictures", tmp_path / "none"), "holds no pictures")


def test_predict_reads_numbers_and_remarks(call, mnist, tmp_path):
    rng = np.random.default_rng(0)
    grey, wanted = generated_row(rng, mnist.test.images, mnist.test.labels)
    Image.fromarray(grey).save(tmp_path / "row.png")
    status, out, err = call("predict", tmp_path / "row.png", "--show")
    first, *seen = out.splitlines()
    assert (status, err) == (0, "")
    assert first.startswith(f"{tmp_path / 'row.png'}: {wanted}  ")
    assert [len(line) for line in seen] == [56] * 28 + ([0] + [56] * 28) * (len(wanted) - 1)
    (record,) = map(json.loads, call("predict", tmp_path / "row.png", "--json")[1].splitlines())
    assert (record["digit"], record["text"], len(record["digits"])) == (int(wanted), wanted, len(wanted))
    assert max(record["probabilities"]) == min(map(max, record["digits"]))
    Image.fromarray(generated_noise(np.random.default_rng(0))).save(tmp_path / "noise.png")
    assert "may not be a digit" in call("predict", tmp_path / "noise.png")[1]
