"""Protects the HTML report in a browser: readable at all widths, in light and dark colours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.devices

# WCAG 2.2, success criterion 1.4.3: contrast of text that is not large.
CONTRAST = 4.5

# Every visible text with its contrast against its background.
_CONTRASTS = """() => {
  const channel = v => (v /= 255, v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const parse = css => (css.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const behind = node => {
    for (let at = node; at instanceof Element; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return parse(getComputedStyle(document.documentElement).backgroundColor);
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let text; (text = walker.nextNode());) {
    const node = text.parentElement;
    if (!text.data.trim() || !node.checkVisibility() || node.closest("title, style")) continue;
    const style = getComputedStyle(node);
    const front = light(parse(node.namespaceURI.includes("svg") ? style.fill : style.color));
    const back = light(behind(node));
    const ratio = (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
    found.push([text.data.trim().slice(0, 40), ratio]);
  }
  return found;
}"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report of the digits network with a wrong weight in its .tflite file."""
    import keras
    import renormlite as rl
    from renormlite.models import digits
    from renormlite.models.data import handwritten_digits

    keras.utils.clear_session()  # restarts the numbers in the names of layers
    keras.utils.set_random_seed(5)
    directory = tmp_path_factory.mktemp("report") / "digits"
    rl.export_model(
        digits.build(rl.BatchRenormalization), directory, inputs=handwritten_digits().test.x[:40]
    )
    path = directory / "digits.float32.tflite"
    with np.load(directory / "network.npz") as archive:
        weight = archive["conv2d_1/kernel"].ravel()[0]
    data = path.read_bytes()
    path.write_bytes(data.replace(weight.tobytes(), np.float32(weight + 1).tobytes()))
    return rl.check_parity(directory)


@pytest.fixture(
    params=[(1200, "light"), (1200, "dark"), (390, "light"), (390, "dark"), (320, "light")],
    ids=lambda p: f"{p[0]}-{p[1]}",
)
def page(request, chromium, report, tmp_path) -> Iterator[Any]:
    """The page at one width, in one colour scheme; requests and console messages fail the test."""
    width, scheme = request.param
    file = tmp_path / "report.html"
    file.write_text(report.to_html(), encoding="utf-8")
    context = chromium.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, java_script_enabled=True
    )
    shown = context.new_page()
    requests, messages = [], []
    shown.on("request", lambda r: requests.append(r.url))
    shown.on("console", lambda m: messages.append(m.text))
    shown.on("pageerror", lambda e: messages.append(str(e)))
    shown.goto(file.as_uri())
    yield shown
    assert [url for url in requests if not url.startswith("data:")] == [file.as_uri()]
    assert messages == []
    context.close()


def test_nothing_is_wider_than_the_page(page):
    """There is no horizontal scrolling, and no part is wider than the page."""
    width = page.evaluate("innerWidth")
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    out = page.evaluate(
        """() => [...document.querySelectorAll("h1, h2, h3, p, li, td, dd, dt, img, summary")]
        .filter(e => e.checkVisibility())
        .map(e => [e.textContent.trim().slice(0, 40), e.getBoundingClientRect().right])"""
    )
    assert out
    assert [entry for entry in out if entry[1] > width] == []


def test_the_verdict_and_the_first_failure_are_visible_without_scrolling(page):
    """The verdict and the faulty layer are at the top."""
    for selector, text in ((".verdict .word", "FAIL"), (".wrong h3", "'conv2d_1'")):
        element = page.locator(selector).first
        assert text in element.inner_text()
        box = element.bounding_box()
        assert box["y"] + box["height"] <= 900


def test_all_text_has_enough_contrast(page):
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    found = page.evaluate(_CONTRASTS)
    assert len(found) > 100
    assert [entry for entry in found if entry[1] < CONTRAST] == []


def test_every_mark_is_inside_its_chart(page):
    """Each lane contains its marks; a ring marks the fault."""
    places = page.evaluate(
        """() => [...document.querySelectorAll(".budget .lane > svg")].map(lane => {
          const box = lane.getBoundingClientRect();
          return [...lane.querySelectorAll("circle, rect, path")].map(mark => {
            const at = mark.getBoundingClientRect();
            return [(at.left + at.right) / 2 - box.left, box.width];
          });
        })"""
    )
    lanes = [marks for marks in places if marks]
    assert len(lanes) == 2
    assert all(0 <= at <= width for marks in lanes for at, width in marks)
    assert page.locator(".budget .ring").count() == 1


def test_pictures_are_shown(page):
    sizes = page.evaluate("[...document.images].map(i => [i.naturalWidth, i.naturalHeight])")
    assert sizes
    assert all(size == [8, 8] for size in sizes)
