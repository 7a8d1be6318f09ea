"""The samples with the greatest errors: input, truth and output."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...artifacts.golden_set import GoldenSet
from ..end_to_end.findings import OutputVerdict

# Samples shown for each output, and scores shown for each.
_SHOWN, _SCORES = 4, 3


@dataclass(frozen=True)
class Score:
    """One class: its scores in truth and on the target, and their bars in per cent of the row."""

    name: str
    truth: float
    actual: float
    truth_width: float
    actual_width: float


@dataclass(frozen=True)
class SampleView:
    """One sample.

    Attributes:
        index: Its place in the golden set.
        kind: "real", "random", …
        pictures: (input name, PNG as data URI) of inputs that are images.
        signals: (input name, SVG path in a 100 by 100 box) of inputs along one axis.
        shapes: Other inputs as text.
        ratio: Error over the expected noise.
        limit: How much of it is allowed.
        error: Root mean square error.
        at: Place of the greatest error inside the sample.
        truth: Truth there.
        actual: What the target gave there.
        scores: The relevant classes, for outputs that decide between classes.
        label: The true class by name; empty if it is not known.
    """

    index: int
    kind: str
    pictures: tuple[tuple[str, str], ...]
    signals: tuple[tuple[str, str], ...]
    shapes: tuple[str, ...]
    ratio: float
    limit: float
    error: float
    at: tuple[int, ...]
    truth: float
    actual: float
    scores: tuple[Score, ...]
    label: str


def worst_samples(
    entry: OutputVerdict, actual: np.ndarray, golden: GoldenSet, classes: Sequence[str]
) -> list[SampleView]:
    """Return the samples of one output with the greatest errors over their bound, worst first.

    Args:
        entry: The verdict on the output.
        actual: (N, …) outputs of the target.
        golden: The samples.
        classes: Names of the classes; their numbers where there are none.
    """
    ratios = np.nan_to_num(entry.ratios, nan=np.inf)
    # A sample with NaN is worse than any error.
    known = golden.reference[entry.metrics.output]
    other = np.isfinite(np.asarray(actual, np.float64)) != np.isfinite(known)
    broken = other.reshape(len(ratios), -1).any(axis=1)
    # An integer file with bit-equal outputs has ratio 0 everywhere; samples are sorted by error.
    order = np.lexsort((-entry.metrics.rms_error, -ratios.round(6), ~broken))[:_SHOWN]
    return [_view(int(i), entry, actual, golden, classes, float(ratios[i])) for i in order]


def _view(
    index: int,
    entry: OutputVerdict,
    actual: np.ndarray,
    golden: GoldenSet,
    classes: Sequence[str],
    ratio: float,
) -> SampleView:
    truth = np.asarray(golden.truth[entry.metrics.output][index], np.float64)
    got = np.asarray(actual[index], np.float64)
    error = np.where(np.isfinite(got), np.abs(got - truth), np.inf)
    place = np.unravel_index(int(np.argmax(error)), truth.shape) if truth.shape else ()
    pictures, signals, shapes = [], [], []
    for name, array in golden.inputs.items():
        sample = array[index]
        if (pixels := picture(sample)) is not None:
            pictures.append((name, pixels))
        elif (path := signal(sample)) is not None:
            signals.append((name, path))
        else:
            shapes.append(f"{name} {sample.shape}")
    known = -1 if golden.labels is None else int(golden.labels[index])
    return SampleView(
        index=index,
        kind=str(golden.kind[index]),
        pictures=tuple(pictures),
        signals=tuple(signals),
        shapes=tuple(shapes),
        ratio=ratio,
        limit=entry.bound.worst,
        error=float(entry.metrics.rms_error[index]),
        at=tuple(int(i) for i in place),
        truth=float(truth[place]),
        actual=float(got[place]),
        scores=_scores(truth, got, classes) if entry.metrics.agreement else (),
        label=_class_name(known, classes) if known >= 0 else "",
    )


def _scores(truth: np.ndarray, got: np.ndarray, classes: Sequence[str]) -> tuple[Score, ...]:
    """Return the greatest scores of truth and target together, greatest truth first."""
    shown = {
        *np.argsort(-truth)[:_SCORES].tolist(),
        int(np.argmax(np.nan_to_num(got, nan=-np.inf))),
    }
    both = np.concatenate([truth, got[np.isfinite(got)]])
    low, high = min(0.0, float(both.min())), float(both.max())
    span = high - low or 1.0

    def width(value: float) -> float:
        return float(np.clip(100 * (value - low) / span, 0, 100)) if np.isfinite(value) else 0.0

    return tuple(
        Score(_class_name(i, classes), truth[i], got[i], width(truth[i]), width(got[i]))
        for i in sorted(shown, key=lambda i: -truth[i])
    )


def _class_name(index: int, classes: Sequence[str]) -> str:
    return classes[index] if index < len(classes) else str(index)


def picture(sample: np.ndarray) -> str | None:
    """Return a sample as PNG in a data URI, None unless it is (H, W), (H, W, 1) or (H, W, 3).

    Values are stretched from the sample's own least to its greatest.
    """
    body = sample[..., 0] if sample.ndim == 3 and sample.shape[-1] == 1 else sample
    colour = body.ndim == 3 and body.shape[-1] == 3
    if not (body.ndim == 2 or colour) or min(body.shape[:2]) < 4:
        return None
    from PIL import Image

    values = np.nan_to_num(np.asarray(body, np.float64), posinf=0.0, neginf=0.0)
    span = float(np.ptp(values))
    levels = (values - values.min()) / (span or 1.0)
    buffer = io.BytesIO()
    Image.fromarray(np.rint(255 * levels).astype(np.uint8)).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def signal(sample: np.ndarray) -> str | None:
    """Return a sample along one axis as an SVG path in a box of 100 by 100, None for others."""
    body = sample[..., 0] if sample.ndim == 2 and sample.shape[-1] == 1 else sample
    if body.ndim != 1 or len(body) < 2:
        return None
    values = np.nan_to_num(np.asarray(body, np.float64), posinf=0.0, neginf=0.0)
    if len(values) > 400:
        values = values[np.linspace(0, len(values) - 1, 400).astype(int)]
    span = float(np.ptp(values)) or 1.0
    heights = 100 - 100 * (values - values.min()) / span
    steps = np.linspace(0, 100, len(values))
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in zip(steps, heights))
