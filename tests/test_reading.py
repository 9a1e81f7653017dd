import json
from pathlib import Path

import numpy as np
import pytest
from conftest import assert_refused
from measure_pictures import generated_letter, generated_noise, generated_row
from PIL import Image

from mnist_jax import load_pretrained, predict
from mnist_jax.deploy import people, reading
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


def light(height, width):
    return np.linspace(0.5, 1, width) * np.linspace(0.8, 1, height)[:, None]


def specks(height, width):
    """What multiplies grey values so that a few dots lie on the paper, away from the digit."""
    dots = np.ones((height, width))
    for y, x in ((4, 4), (8, width - 9), (height - 10, 10)):
        dots[y : y + 3, x : x + 3] = 0.2
    return dots


FAULTS = {
    "sloped light": lambda grey: grey * light(*grey.shape),
    "faint pencil": lambda grey: 250 - (grey.max() - grey) * (14 / 210),
    "grey paper": lambda grey: grey * 0.4,
    "specks": lambda grey: grey * specks(*grey.shape),
    "a bar at the edge": lambda grey: np.where(np.arange(grey.shape[1]) < 6, 30.0, grey),
    "dark paper": lambda grey: 255 - grey,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_digit_is_found_whatever_the_paper_is_like(fault, mnist, pen):
    """What the network says of test digits on such paper, against what it says of the arrays."""
    images = mnist.test.images[:200]
    seen = np.stack([to_digit(FAULTS[fault](on_paper(image))) for image in images])
    said, expected = (predict(pen, each).argmax(-1) for each in (seen, images))
    assert (said == expected).mean() >= 0.98


def test_thin_strokes_become_a_tenth_of_the_digit():
    ring = np.hypot(*(np.mgrid[:200, :200] - 99.5))
    for width in (2, 4, 8):
        seen = fit_box(((ring < 90) & (ring > 90 - width)).astype(float))[14, :, 0]
        assert seen[:14].sum() / 255 == pytest.approx(2, abs=0.7)  # Of 20 pixels, on each side.
    thick = fit_box(((ring < 90) & (ring > 50)).astype(float))[14, :, 0]
    assert thick[:14].sum() / 255 == pytest.approx(4.4, abs=0.5)


def test_rows_are_read_as_numbers(mnist, pen):
    rng = np.random.default_rng(0)
    rows = [generated_row(rng, mnist.test.images, mnist.test.labels) for _ in range(100)]
    answers = reading.read(pen, [to_row(grey.astype(float)) for grey, _ in rows])
    right = [answer.text == wanted for answer, (_, wanted) in zip(answers, rows, strict=True)]
    assert sum(right) >= 90
    assert all(answer.probabilities.shape == (len(answer.text), 10) for answer in answers)
    for answer in answers[:5]:
        assert answer.confidence == pytest.approx(np.prod([shares.max() for shares in answer.probabilities]))


def test_one_digit_is_not_taken_for_a_row(mnist):
    rows = [to_row(on_paper(image)) for image in mnist.test.images[:300]]
    assert [len(row.digits) for row in rows] == [1] * 300
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


def test_doubt_is_a_distance_and_tells_letters_from_digits(mnist, pen):
    identity = reading.Doubt(np.eye(3) * 10, np.eye(3), 2.0, 0.0)
    np.testing.assert_allclose(identity.of(np.array([[10.0, 0, 0], [10, 3, 4]])), [-5, 5 - 5])
    doubt, rng = reading.load_doubts()[READER], np.random.default_rng(1)
    letters = np.stack([to_digit(generated_letter(rng).astype(float)) for _ in range(100)])
    inside, outside = (doubt.of(predict(pen, images)) for images in (mnist.test.images[:2000], letters))
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


def test_an_answer_names_what_it_doubts():
    shares = np.array([[0.62, 0.378, 0.002], [0.98, 0.01, 0.01]])
    plain = reading.answer_of(("a", "b", "c"), Row((None, None)), shares[1:], False)
    assert (plain.text, plain.remarks) == ("a", ())
    doubtful = reading.answer_of(("a", "b", "c"), Row((None, None), True), shares, True)
    assert doubtful.text == "aa"
    assert doubtful.remarks == ("a or b (37.8%)", "no digit?", "uncertain where a digit ends")


def said(text, probability):
    return Answer(text, np.array([[probability, 1 - probability]]))


def test_the_score_counts_people_not_pictures():
    """Closed forms: one person wrong in half of the pictures, three always right."""
    pictures = [people.Picture(Path(f"p{i}/1_{j}.png"), f"p{i}", "1") for i in range(4) for j in range(4)]
    answers = [said("7" if i < 2 else "1", 0.95) for i in range(15)] + [None]
    score = people.score(pictures, answers)
    assert (score.pictures, score.accuracy, score.sure_and_wrong) == (16, 13 / 16, 2)
    assert score.people == {"p0": (4, 2), "p1": (4, 4), "p2": (4, 4), "p3": (4, 3)}
    assert score.confusions == [("1", "7", 2), ("1", "-", 1)]
    assert score.calibration_error == pytest.approx((15 * 0.95 - 13) / 16)
    assert score.interval[0] < 13 / 16 < score.interval[1]
    alike = people.score(pictures, [said("1", 1.0)] * 16)
    assert (alike.accuracy, alike.interval, alike.calibration_error) == (1.0, (1.0, 1.0), 0.0)


def test_evaluate_scores_pictures_and_shows_the_errors(call, mnist, tmp_path):
    first = mnist.test.labels[0]
    assert first != 1
    for person in ("ann", "bob"):
        (tmp_path / person).mkdir()
        for i in range(5):
            label = mnist.test.labels[i] if (person, i) != ("bob", 0) else 1
            Image.fromarray(np.uint8(on_paper(mnist.test.images[i]))).save(tmp_path / person / f"{label}_{i}.png")
    command = "evaluate", "--pictures", tmp_path, "--page", tmp_path / "errors.html"
    status, out, err = call(*command)
    assert (status, err) == (0, "")
    assert "bob: 4 of 5\nall 10 by 2 people: 90.00%" in out
    assert f"taken: 1 as {first} 1x" in out
    page = (tmp_path / "errors.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert f"bob/1_0.png: 1,\n    taken for {first}" in page
    assert json.loads(call(*command, "--json")[1])["confusions"] == [["1", str(first), 1]]
    (tmp_path / "bob" / "x_1.png").write_bytes((tmp_path / "bob" / "1_0.png").read_bytes())
    assert_refused(call(*command), "x_1.png", "LABEL_*")
    assert_refused(call("evaluate", "--pictures", tmp_path / "none"), "holds no pictures")
    assert_refused(call("evaluate", "--arch", "gap", "--page", "x.html"), "'x.html'", "--pictures")


def test_predict_says_numbers_and_doubts(call, mnist, tmp_path):
    rng = np.random.default_rng(0)
    grey, wanted = generated_row(rng, mnist.test.images, mnist.test.labels)
    Image.fromarray(grey).save(tmp_path / "row.png")
    status, out, err = call("predict", tmp_path / "row.png", "--show")
    first, *seen = out.splitlines()
    assert (status, err) == (0, "")
    assert first.startswith(f"{tmp_path / 'row.png'}: {wanted}  ")
    assert [len(line) for line in seen] == [56] * 28 + ([0] + [56] * 28) * (len(wanted) - 1)
    (tmp_path / "noise").mkdir()
    for i in range(20):
        Image.fromarray(generated_noise(rng)).save(tmp_path / "noise" / f"{i}.png")
    assert call("predict", tmp_path / "noise")[1].count("no digit?") >= 10
    (record,) = map(json.loads, call("predict", tmp_path / "row.png", "--json")[1].splitlines())
    assert (record["digit"], record["text"], len(record["digits"])) == (int(wanted), wanted, len(wanted))
    assert max(record["probabilities"]) == min(map(max, record["digits"]))
