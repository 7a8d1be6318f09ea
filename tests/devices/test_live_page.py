"""Protects the live page: in a real browser it classifies digits as the exported files do."""

from __future__ import annotations

import functools
import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import renormlite as rl

pytestmark = pytest.mark.devices

BUILD = Path(rl.__file__).parent / "examples" / "live_page" / "build.py"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the page, built as the docstring of build.py says."""
    folder = tmp_path_factory.mktemp("live") / "site"
    result = subprocess.run(
        [sys.executable, BUILD, folder, "--epochs", "2"], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.splitlines()[-2:] == [
        "passed",
        f"python -m http.server --directory {folder}",
    ]
    return folder


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """The address of a web server for that folder."""

    class Silent(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    handler = functools.partial(Silent, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(params=[(1200, "light"), (390, "dark")], ids=["wide-light", "narrow-dark"])
def page(request: Any, chromium: Any, address: str) -> Iterator[Any]:
    """The loaded page; any message in its console fails the test."""
    width, scheme = request.param
    context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    shown = context.new_page()
    messages: list[str] = []
    shown.on("console", lambda message: messages.append(message.text))
    shown.on("pageerror", lambda error: messages.append(str(error)))
    shown.goto(address)
    shown.wait_for_function("document.querySelector('#difference').textContent === 'Draw a digit.'")
    yield shown
    assert messages == []
    context.close()


def run(site: Path, precision: str, counts: list[int]) -> np.ndarray:
    """Return the probabilities that ONNX Runtime computes on this machine."""
    session = onnxruntime.InferenceSession(site / "digits" / f"digits.{precision}.onnx")
    image = np.float32(counts).reshape(1, 8, 8, 1) / 16
    (output,) = session.run(None, {session.get_inputs()[0].name: image})
    return np.asarray(output)[0]


def shown_by(page: Any) -> dict[str, Any]:
    """Return the pixels that the page classified last, and the outputs that it computed."""
    page.wait_for_function("globalThis.renormliteShown !== undefined")
    shown: dict[str, Any] = page.evaluate("globalThis.renormliteShown")
    return shown


def test_digits_of_the_test_set_are_classified_as_the_files_classify_them(
    page: Any, site: Path
) -> None:
    digits = json.loads((site / "page.json").read_text())["digits"]
    for digit in digits:
        page.evaluate("delete globalThis.renormliteShown")
        page.click("#next")
        shown = shown_by(page)
        assert shown["counts"] == digit["levels"]
        for precision in ("float32", "int8"):
            np.testing.assert_allclose(
                shown[precision]["probabilities"],
                run(site, precision, digit["levels"]),
                atol=1e-6 if precision == "float32" else 1e-7,
            )
        best = int(np.argmax(shown["int8"]["probabilities"]))
        assert page.locator("td.best[data-precision=int8]").count() == 1
        assert page.locator("#classes tr").nth(best).locator("td.best").count() >= 1


def test_a_drawn_stroke_is_classified(page: Any, site: Path) -> None:
    """A vertical stroke fills the height of the eight by eight pixels, in their middle columns."""
    pad = page.locator("#pad").bounding_box()
    x = pad["x"] + pad["width"] / 4  # off centre: the page centres the drawing
    page.mouse.move(x, pad["y"] + 0.3 * pad["height"])
    page.mouse.down()
    page.mouse.move(x, pad["y"] + 0.8 * pad["height"], steps=6)
    page.mouse.up()
    page.wait_for_function("globalThis.renormliteShown?.counts.reduce((a, b) => a + b) > 100")
    levels = np.array(shown_by(page)["counts"]).reshape(8, 8)
    assert (levels[:, 3:5].sum(axis=1) > 0).all()
    assert not levels[:, [0, 1, 6, 7]].any()
    np.testing.assert_allclose(
        shown_by(page)["float32"]["probabilities"],
        run(site, "float32", levels.ravel().tolist()),
        atol=1e-6,
    )
    assert [page.inner_text(f"thead th:nth-child({i})") for i in (2, 3)] == ["float32", "int8"]
    drawn = page.evaluate(
        """() => {
          const ink = document.querySelector("#pad").getContext("2d");
          return [...ink.getImageData(80, 160, 1, 1).data];
        }"""
    )
    text = page.evaluate("getComputedStyle(document.body).color.match(/[0-9]+/g).map(Number)")
    assert drawn == [*text, 255]  # light strokes on a dark page
    page.click("#clear")
    assert page.inner_text("#difference") == "Draw a digit."
    assert page.locator("td.best").count() == 0


def test_the_verdict_is_shown(page: Any) -> None:
    assert page.inner_text("#verdict h2") == "Parity: PASS"
    lines = page.locator("#verdict li").all_inner_texts()
    assert [line.split(" ")[0] for line in lines] == ["digits.float32.onnx", "digits.int8.onnx"]
    assert all("dB" in line and "% of the test digits right" in line for line in lines)
    with page.expect_navigation():
        page.click("#verdict a")
    assert "digits" in page.title()


def test_nothing_is_wider_than_the_page(page: Any) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
