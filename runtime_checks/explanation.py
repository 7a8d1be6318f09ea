"""Explains the loss of an int8 file layer by layer: its size, its cause and the remedy."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Any

from ..artifacts.directory import ExportDirectory, read_export
from ..artifacts.graphs import READERS, read_graph
from ..artifacts.manifest import Artifact
from ..artifacts.precisions import Arithmetic, precision_named
from ..artifacts.sample_kinds import typical_samples
from ..errors import UserError
from ..reference.network import opaque_layers
from ..reference.quantization_costs import (
    CAUSES,
    OUTLIERS,
    UNLIKE_CHANNELS,
    Costs,
    Effect,
    LayerCost,
    measure_costs,
)
from ..reference.unequal_parts import unequal_parts
from .end_to_end.task_agreement import deciding_outputs

_HALF_DB = 3.0  # half of the power


@dataclasses.dataclass(frozen=True)
class LayerExplanation:
    """The loss that one layer causes, and the remedy.

    Attributes:
        layer: The Keras layer, or `input 'NAME'`.
        cost_db: Decibels that the file would gain without the layer's errors.
        causes_db: The same for `weights`, `steps` (of the range) and `clipping` alone.
        decisions: Cause to the number of decisions that it changes alone.
        why: One sentence.
        remedy: One sentence.
    """

    layer: str
    cost_db: float
    causes_db: dict[str, float]
    decisions: dict[str, int]
    why: str
    remedy: str


@dataclasses.dataclass(frozen=True)
class FileExplanation:
    """The loss of one file, by layer.

    Attributes:
        file: The file.
        snr_db: Signal-to-noise ratio that results from all causes together, in decibels.
        measured_db: The file's own on the export's samples, for its worst output; None if unknown.
        samples: Samples that the causes were measured on.
        kind: Kind of these samples.
        decisions: Decisions that all causes together change.
        layers: The layers, greatest loss first.
        advice: What else costs decibels: the runtime's kernels, and outputs to split.
        reason: Why nothing could be measured; else empty.
    """

    file: str
    snr_db: float = math.inf
    measured_db: float | None = None
    samples: int = 0
    kind: str = ""
    decisions: int = 0
    layers: tuple[LayerExplanation, ...] = ()
    advice: tuple[str, ...] = ()
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class Explanation:
    """Why the integer files of an export are worse than its model.

    Attributes:
        files: One entry for each file of integers.
    """

    files: tuple[FileExplanation, ...]

    def to_json(self) -> dict[str, Any]:
        """Return nested dictionaries for JSON."""
        return dataclasses.asdict(self)


def explain(directory: str | os.PathLike[str], artifacts: Sequence[str] = ()) -> Explanation:
    """Explain why the int8 and int16x8 files of an export are worse than the trained model.

    The errors of each layer's weights, steps and clipping are added to the exact network one at a
    time.

    Args:
        directory: Directory that `renormlite export` wrote.
        artifacts: Names of the files to explain; all files of integers by default.

    Returns:
        For each file the layers, greatest loss first, with cause and remedy.

    Raises:
        UserError: The directory is not an export, or holds no such file.
    """
    export = read_export(directory)
    wanted = [
        artifact
        for artifact in export.artifacts
        if precision_named(artifact.precision).arithmetic is Arithmetic.INTEGER
        and artifact.format in READERS
        and (not artifacts or artifact.file in artifacts)
    ]
    if not wanted:
        named = f" among {', '.join(artifacts)}" if artifacts else ""
        held = ", ".join(artifact.file for artifact in export.artifacts)
        raise UserError(
            f"{directory} has no file of integers{named} to explain; it holds {held}. Export int8."
        )
    return Explanation(tuple(_explained(export, artifact) for artifact in wanted))


def _explained(export: ExportDirectory, artifact: Artifact) -> FileExplanation:
    damage = export.damaged(artifact)
    if damage is not None:
        return FileExplanation(artifact.file, reason=damage)
    network = export.read_network(artifact)
    opaque = [] if network is None else sorted(set(opaque_layers(network)))
    if network is None or opaque:
        return FileExplanation(
            artifact.file,
            reason=f"only Keras can evaluate {', '.join(opaque)}"
            if opaque
            else "the export wrote no network",
        )
    golden = export.read_golden()
    kind, index = typical_samples(golden.kind)
    inputs = {name: array[index] for name, array in golden.inputs.items()}
    graph = read_graph(export.path / artifact.file, artifact.format, export.content(artifact))
    graph = graph.in_order(*artifact.names)
    classes = export.manifest.metadata.get("labels", ())
    deciding = deciding_outputs(network, golden, classes)
    costs = measure_costs(network, graph, inputs, sorted(deciding))
    ratios = [ratio for ratio in artifact.snr_db.values() if ratio is not None]
    explained, measured = _ratio(costs.together), min(ratios, default=None)
    return FileExplanation(
        artifact.file,
        snr_db=explained,
        measured_db=measured,
        samples=costs.samples,
        kind=kind,
        decisions=costs.together.decisions,
        layers=tuple(_layer(costs, entry, artifact.precision) for entry in costs.layers),
        advice=(
            *_of_kernels(explained, measured),
            *unequal_parts(network, {name: truth[index] for name, truth in golden.truth.items()}),
        ),
    )


def _of_kernels(explained: float, measured: float | None) -> list[str]:
    """Say so if the causes explain less than half of the error's power."""
    if measured is None or explained - measured < _HALF_DB:
        return []
    return [
        f"These causes explain {explained:.1f} dB, the file has {measured:.1f} dB: the rest is the "
        "rounding inside the runtime's kernels, such as the tables of their softmax."
    ]


def _ratio(effect: Effect) -> float:
    return math.inf if effect.power == 0 else -10 * math.log10(effect.power)


def _layer(costs: Costs, entry: LayerCost, precision: str) -> LayerExplanation:
    why, remedy = _diagnosed(entry, _Remedies.of(entry, precision))
    return LayerExplanation(
        layer=entry.layer,
        cost_db=costs.decibels(entry.power),
        causes_db={cause: costs.decibels(entry.causes[cause].power) for cause in CAUSES},
        decisions={cause: entry.causes[cause].decisions for cause in CAUSES},
        why=why,
        remedy=remedy,
    )


@dataclasses.dataclass(frozen=True)
class _Remedies:
    """The remedies that a file's precision has for a layer.

    Attributes:
        weights: For rounded weights.
        steps: For results with too few steps.
        channels: For channels of different magnitude.
        outliers: For a range that few values need.
    """

    weights: str
    steps: str
    channels: str
    outliers: str

    @classmethod
    def of(cls, entry: LayerCost, precision: str) -> _Remedies:
        if precision == "int16x8":
            other = "export float16"
            return cls(
                f"train with this rounding (rl.quantize_aware(…, activation_bits=16)), or {other}",
                other,
                f"equalize them (--equalize always), or {other}",
                other,
            )
        in_float = f"--keep-float {entry.layer}"
        options = in_float if entry.steps > 255 else f"--keep-int16 {entry.layer} or {in_float}"
        kept = f"keep it apart ({options})"
        return cls(
            f"round them adaptively (--precision auto), or keep it apart ({in_float})",
            kept,
            f"equalize them (--equalize always, --precision auto), or {kept}",
            f"choose the range by least squared error (--precision auto), or {kept}",
        )


def _diagnosed(entry: LayerCost, remedies: _Remedies) -> tuple[str, str]:
    """Return the cause of a layer's loss, and the remedy."""
    is_input = entry.layer.startswith("input ")
    if entry.worst == "clipping":
        return (
            f"{entry.clipped:.3g} % of its values lie beyond {entry.low:.4g} to {entry.high:.4g}",
            "calibrate with samples like these, or with a wider range (min-max)",
        )
    if entry.worst == "weights":
        return (
            "8 bits round its weights by more than the rest of the file can hide",
            remedies.weights,
        )
    if is_input:
        return (
            f"the input itself has {entry.steps:,} steps",
            ("" if entry.steps > 255 else "only int16x8 gives it more; ")
            + "scale the data so that it fills the range",
        )
    if entry.channels > UNLIKE_CHANNELS:
        return (
            f"its channels differ by {entry.channels:.0f}x (largest over median), and one step "
            "serves all of them",
            remedies.channels,
        )
    if entry.outliers > OUTLIERS:
        return (
            f"its greatest value is {entry.outliers:.1f} times what one in a thousand exceeds",
            remedies.outliers,
        )
    return entry.too_coarse, remedies.steps
