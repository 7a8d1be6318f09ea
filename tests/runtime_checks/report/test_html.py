"""Protects the page: it needs no other file, shows the verdict first and accepts unusual data."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from renormlite.runtime_checks.report.charts import anchor
from renormlite.runtime_checks.report.worst_samples import picture, signal

_VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Collects what a page is made of, and complains about tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def values(self, attribute: str) -> list[str]:
        return [a[attribute] or "" for _, a in self.tags if attribute in a]


@pytest.fixture(scope="module")
def good(healthy) -> Page:
    return Page(healthy.to_html())


@pytest.fixture(scope="module")
def bad(failing) -> Page:
    return Page(failing.to_html())


@pytest.mark.parametrize("which", ["healthy", "walked", "failing"])
def test_needs_no_other_file(which, request):
    page = Page(request.getfixturevalue(which).to_html())
    assert not {tag for tag, _ in page.tags} & {"script", "iframe", "object", "embed"}
    assert all(value.startswith("data:image/png") for value in page.values("src"))
    # The one link is an empty icon, which browsers would otherwise request from the server.
    assert all(value.startswith("#") or value == "data:," for value in page.values("href"))
    style = request.getfixturevalue(which).to_html().split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style


def test_every_link_has_a_target(bad):
    links = {value for tag, value in ((t, a.get("href")) for t, a in bad.tags) if tag == "a"}
    assert {value[1:] for value in links} <= set(bad.values("id"))


def test_the_verdict_comes_first(good, bad):
    assert good.text.startswith("digits: PASS PASS digits 4 files on 2 targets")
    assert bad.text.startswith("digits: FAIL FAIL digits 4 files on 2 targets: 2 of 4")
    assert "Failures" not in good.text


def test_a_failure_has_problem_place_size_limit_and_reason(bad):
    wrong = bad.text.split("Failures")[1].split("Targets")[0]
    assert "The weights of layer 'conv2d_1' differ from the trained model's" in wrong
    for word in ("Where layer 'conv2d_1', op", "How much", "times the expected noise", "Allowed"):
        assert word in wrong
    assert "has a fault on the target, or in the file since it was exported" in wrong
    assert "The weights of layer 'conv2d_2' differ" in wrong


def test_failures_are_open_and_the_rest_is_closed(failing, bad):
    by_id = {a["id"]: a for tag, a in bad.tags if tag == "details" and "id" in a}
    assert {name: "open" in a for name, a in by_id.items()} == {
        anchor(result): not result.passed for result in failing.results
    }


def test_every_stage_of_every_file_is_drawn(good, healthy):
    labels = [label for label in good.values("aria-label") if " on " in label]
    assert len(labels) == len(healthy.results)
    titles = " ".join(good.text.split("Where the error comes from")[1].split("All checks")[:1])
    assert titles.count("quantized:") >= 2  # one a lane, and one a share of the error
    for word in ("folded:", "exported:", "target:", "float32 Keras model:"):
        assert word in titles


def test_every_op_is_drawn(walked):
    page = Page(walked.to_html())
    for result in walked.results:
        assert result.ops
        for check in result.ops:
            assert f"{check.layer} (" in page.text


def test_worst_samples_show_their_input_image(failing, bad):
    result = next(r for r in failing.results if r.artifact == "digits.float32.tflite")
    worst = result.outputs[0].worst_sample
    shown = next(
        a for tag, a in bad.tags if tag == "img" and a["alt"] == f"image of sample {worst}"
    )
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(shown["src"].split(",")[1]))))
    image = failing.golden.inputs["image"][worst, :, :, 0]
    span = np.ptp(image)
    assert pixels.shape == (8, 8)
    np.testing.assert_array_equal(pixels, np.rint(255 * (image - image.min()) / span))


def test_classes_are_shown_by_name(bad):
    assert re.search(r"(three|seven|eight)", bad.text)


def test_names_are_escaped(healthy):
    odd = dataclasses.replace(healthy, name="<b>&x")
    page = Page(odd.to_html())
    assert "b" not in {tag for tag, a in page.tags if a.get("class") == "name"}
    assert "<b>&x" in page.text


def test_decisions_with_labels_are_shown(healthy, digits_export):
    from renormlite.runtime_checks.end_to_end.task_agreement import task_agreement

    golden = dataclasses.replace(
        healthy.golden, labels=healthy.golden.truth["digit"].argmax(axis=1)
    )
    wrong = np.roll(healthy.golden.truth["digit"], 1, axis=1)
    task = task_agreement("digit", wrong, golden, np.zeros(golden.samples))
    results = (dataclasses.replace(healthy.results[0], tasks=(task,)), *healthy.results[1:])
    page = Page(dataclasses.replace(healthy, results=results, golden=golden).to_html())
    assert "accuracy 100.00 % before, 0.00 % after" in page.text


@pytest.mark.parametrize(
    ("shape", "shown"),
    [((8, 8), True), ((8, 8, 1), True), ((8, 8, 3), True), ((8, 8, 2), False), ((3, 9), False)],
)
def test_arrays_with_the_shape_of_images_are_shown_as_images(shape, shown):
    sample = np.random.default_rng(0).normal(size=shape)
    assert (picture(sample) is not None) == shown


def test_images_of_unusual_values():
    assert picture(np.zeros((8, 8))) is not None
    assert picture(np.full((8, 8), np.nan)) is not None


def test_signals_are_lines():
    path = signal(np.sin(np.arange(1000.0)))
    assert path is not None
    assert path.count("L") == 399
    assert signal(np.zeros((4, 5, 6))) is None
    assert signal(np.array([0.0, np.inf, 1.0])) is not None


def test_nothing_checked(healthy):
    page = Page(dataclasses.replace(healthy, results=()).to_html())
    assert "Nothing was checked" in page.text


@pytest.fixture(scope="module")
def two_outputs(tmp_path_factory):
    """A model from a signal to a decision and a level, whose .onnx file is cut short."""
    import keras
    import renormlite as rl
    from keras import layers

    keras.utils.set_random_seed(3)
    wave = keras.Input((32, 1), name="wave")
    x = layers.ReLU()(rl.BatchRenormalization()(layers.Conv1D(4, 3)(wave)))
    x = layers.Flatten()(x)
    outputs = {
        "word": layers.Dense(3, activation="softmax", name="word")(x),
        "level": layers.Dense(1, name="level")(x),
    }
    directory = tmp_path_factory.mktemp("two") / "two"
    rl.export_model(keras.Model(wave, list(outputs.values())), directory)
    path = directory / "two.float32.onnx"
    path.write_bytes(path.read_bytes()[:100])
    return rl.check_parity(directory)


def test_two_outputs_and_a_file_that_does_not_load(two_outputs):
    page = Page(two_outputs.to_html())
    assert "The runtime cannot load or run the file" in page.text
    for name in ("word", "level"):
        assert f"Error budget of '{name}'" in page.text
    assert "Decisions of 'word'" in page.text
    assert "Decisions of 'level'" not in page.text
    waves = [a for tag, a in page.tags if tag == "svg" and a.get("class") == "wave"]
    assert len(waves) == 8


def test_of_many_samples_evenly_spaced_ranks_are_drawn(healthy):
    from renormlite.runtime_checks.report.charts import sample_chart

    many = np.tile(np.arange(healthy.golden.samples), 40)
    entry = healthy.results[0].outputs[0]
    metrics = dataclasses.replace(
        entry.metrics,
        rms_error=entry.metrics.rms_error[many],
        rms_truth=entry.metrics.rms_truth[many],
    )
    bound = dataclasses.replace(entry.bound, noise=entry.bound.noise[many])
    wide = dataclasses.replace(entry, metrics=metrics, bound=bound, ratios=entry.ratios[many])
    chart = sample_chart(wide, healthy.golden.select(many))
    lane = next(lane for lane in chart.lanes if lane.kind == "real (640)")
    assert len(lane.marks) == 60
    real = wide.ratios[healthy.golden.kind[many] == "real"]
    assert f"{real.max():.3g}x" in lane.marks[-1].title
    assert f"{real.min():.3g}x" in lane.marks[0].title
