"""Checks whether an export is up to date with a Keras model, and names the layers that changed."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..artifacts.directory import ExportDirectory, read_export
from ..artifacts.images import Preprocessing
from ..artifacts.network import Network, Node
from ..artifacts.samples import Source
from ..export.exporter import folded_network
from ..files import sha256
from ..runtime_checks.end_to_end.findings import Finding
from ..runtime_checks.options import CheckOptions
from ..runtime_checks.parity import ParityReport, run_check

if TYPE_CHECKING:
    import keras

CHECK = "model"
# Greatest number of changed layers that are listed.
_MOST_NAMED = 10


def check_export(
    model: keras.Model,
    directory: str | os.PathLike[str],
    *,
    source: str | os.PathLike[str] | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    inputs: Source | None = None,
    preprocessing: Preprocessing | None = None,
    **options: Any,
) -> ParityReport:
    """Check an export like `check_parity`, and that it was made from a model.

    Args:
        model: The model that the export should have been made from.
        directory: Directory that `renormlite export` wrote.
        source: The file that the model was loaded from; if it has the hash in the manifest, no
            comparison is needed.
        shapes: Sizes of the free axes of inputs, by input name.
        inputs: See `check_parity`.
        preprocessing: See `check_parity`.
        **options: The options of `check_parity`.

    Raises:
        UserError: The directory or the model cannot be read, or an option is invalid.
    """
    chosen = CheckOptions(**options)
    export = read_export(directory)
    findings = model_findings(model, export, source=source, shapes=shapes)
    report = run_check(directory, chosen, inputs, preprocessing)
    return dataclasses.replace(report, findings=(*report.findings, *findings))


def model_findings(
    model: keras.Model,
    export: ExportDirectory,
    *,
    source: str | os.PathLike[str] | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> list[Finding]:
    """Compare an export with a model; return one finding, or one for each changed layer."""
    known = export.manifest.source.get("sha256")
    if source is not None and known == sha256(source):
        name = Path(source).name
        return [Finding(CHECK, True, f"the export was made from {name} (equal SHA-256)")]
    old = export.folded_network
    if old is None:
        return [Finding(CHECK, False, f"{export.path} has no network to compare with")]
    manifest = export.manifest
    split = manifest.options.get("split_outputs", ())
    new = folded_network(model, shapes, Preprocessing.inside(manifest.metadata), split)
    if (len(new.inputs), len(new.outputs)) == (len(old.inputs), len(old.outputs)):
        new = new.named(list(old.inputs), list(old.outputs))
    changed = dict(_changes(old, new))
    if not changed:
        return [Finding(CHECK, True, f"the export matches '{model.name}': all weights are equal")]
    findings = [
        Finding(CHECK, False, f"layer '{layer}' {says} since the export", layer)
        for layer, says in list(changed.items())[:_MOST_NAMED]
    ]
    rest = len(changed) - _MOST_NAMED
    if rest > 0:
        findings.append(Finding(CHECK, False, f"{rest} more layers changed since the export"))
    return findings


def _changes(old: Network, new: Network) -> Iterator[tuple[str, str]]:
    """Yield each layer that differs between two networks, and the difference."""
    if dict(old.inputs) != dict(new.inputs) or list(old.outputs) != list(new.outputs):
        yield "(interface)", f"has the inputs {dict(new.inputs)} instead of {dict(old.inputs)}"
    before, after = _by_layer(old), _by_layer(new)
    for layer in dict.fromkeys([*before, *after]):
        if layer not in after:
            yield layer, "was removed"
        elif layer not in before:
            yield layer, "was added"
        elif says := _changed(before[layer], after[layer]):
            yield layer, says


def _by_layer(network: Network) -> dict[str, list[Node]]:
    layers: dict[str, list[Node]] = {}
    for node in network.nodes:
        layers.setdefault(node.layer, []).append(node)
    return layers


def _changed(old: list[Node], new: list[Node]) -> str:
    """Return the difference between two versions of a layer; empty if there is none."""
    if [node.op for node in old] != [node.op for node in new]:
        return f"computes {', '.join(n.op for n in new)} instead of {', '.join(n.op for n in old)}"
    for before, after in zip(old, new, strict=True):
        if dict(before.attributes) != dict(after.attributes):
            return f"has the options {dict(after.attributes)} instead of {dict(before.attributes)}"
        for role in dict.fromkeys([*before.weights, *after.weights]):
            a, b = before.weights.get(role), after.weights.get(role)
            if a is None or b is None:
                return f"{'lost its' if b is None else 'has a'} {role}"
            if a.shape != b.shape:
                return f"has a {role} of shape {b.shape} instead of {a.shape}"
            different = int(np.sum(a != b))
            if different:
                most = float(np.abs(a.astype(np.float64) - b).max())
                return (
                    f"has different weights ({different} / {a.size} of its {role}, by up to "
                    f"{most:.3g})"
                )
    return ""
