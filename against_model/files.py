"""Checks files that any converter made against the Keras model they should compute."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..artifacts.directory import read_export
from ..artifacts.graphs import TooLargeError, format_of, read_graph
from ..artifacts.graphs.onnx_weights import copy_weights
from ..artifacts.images import Preprocessing
from ..artifacts.manifest import Artifact
from ..artifacts.sample_kinds import TYPICAL
from ..artifacts.samples import Source
from ..errors import UserError
from ..export.exporter import describe_files
from ..export.run import Truth
from ..files import sha256
from ..locks import temporary_folder
from ..reference.network import opaque_layers
from ..runtime_checks.foreign.interface import match_interface, other_signatures
from ..runtime_checks.foreign.networks import made_from
from ..runtime_checks.foreign.precision import precision_of
from ..runtime_checks.options import CheckOptions
from ..runtime_checks.parity import ParityReport, run_check
from ..runtimes.base import ArtifactError

if TYPE_CHECKING:
    import keras


def check_files(
    model: keras.Model,
    files: Sequence[str | os.PathLike[str]],
    inputs: Source | None = None,
    *,
    map_inputs: Mapping[str, str] | None = None,
    map_outputs: Mapping[str, str] | None = None,
    keep: str | os.PathLike[str] | None = None,
    labels: Sequence[str] = (),
    preprocessing: Preprocessing | None = None,
    source: str | os.PathLike[str] | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    **options: Any,
) -> ParityReport:
    """Check that files of any converter compute what a Keras model computes.

    Their norms may be unfolded, or folded differently than by `export_model`. Inputs and outputs
    are matched by name, else by shape and order, else by values; the report says how.

    Args:
        model: The trained model.
        files: `.tflite` and `.onnx` files.
        inputs: Real samples, in any form that `export_model` takes; random ones by default.
        map_inputs: Name of an input of the model to its name in the file, to correct the matching.
        map_outputs: The same for outputs.
        keep: Directory in which to keep the reference, in the form of an export, for `check_parity`
            or a bundle without Keras. By default it is not kept.
        labels: Names of the classes.
        preprocessing: Conversion of the pixels of a folder of images to inputs.
        source: The file that the model was loaded from.
        shapes: Sizes of the free axes of inputs, by input name.
        **options: The options of `check_parity`.

    Returns:
        The report. A file that cannot be run, or whose inputs do not fit, is a failed check.

    Raises:
        UserError: There is no such file, the model cannot be read, the samples do not fit it, or an
            option is invalid.
    """
    chosen = CheckOptions(**options)
    paths = [Path(file) for file in files]
    _require_files(paths)
    with temporary_folder() as folder:
        directory = Path(keep) if keep is not None else folder / _name(model, source)
        wanted = {**(map_inputs or {}), **(map_outputs or {})}
        describer = _Describer(paths, wanted)
        describe_files(
            model,
            directory,
            describer.describe,
            inputs=inputs,
            labels=labels,
            preprocessing=preprocessing,
            source=source,
            shapes=shapes,
        )
        network = read_export(directory).folded_network
        opaque = network is None or opaque_layers(network)
        report = run_check(
            directory, chosen, None if opaque else inputs, None if opaque else preprocessing
        )
    where = directory if keep is not None else paths[0].parent
    return dataclasses.replace(report, directory=where)


def _name(model: keras.Model, source: str | os.PathLike[str] | None) -> str:
    """Return the name of the model in the report."""
    return str(model.name) if source is None else Path(source).stem


def _require_files(paths: Sequence[Path]) -> None:
    """Refuse files that are missing or of an unknown format."""
    if not paths:
        raise UserError("Expected at least one .tflite or .onnx file. Received none.")
    for path in paths:
        format_of(path)


def file_names(paths: Sequence[Path]) -> list[str]:
    """Return a unique name for each file; equal names are prefixed with that of their folder."""
    counts = Counter(path.name for path in paths)
    return [p.name if counts[p.name] == 1 else f"{p.resolve().parent.name}-{p.name}" for p in paths]


class _Describer:
    """Copies files into a directory and describes them."""

    def __init__(self, paths: Sequence[Path], wanted: Mapping[str, str]) -> None:
        self._paths, self._wanted = paths, wanted

    def describe(self, folder: Path, truth: Truth) -> list[Artifact]:
        """Copy the files into a folder and return their descriptions."""
        artifacts = []
        for path, name in zip(self._paths, file_names(self._paths), strict=True):
            shutil.copy(path, folder / name)
            weights = copy_weights(path, folder)
            described = self._describe(folder / name, truth)
            artifacts.append(dataclasses.replace(described, weights=weights))
        return artifacts

    def _describe(self, path: Path, truth: Truth) -> Artifact:
        """Return the description of a file; that of the model if it cannot be read or run."""
        plain = Artifact(
            file=path.name,
            format=path.suffix.lstrip("."),
            precision="float32",
            sha256=sha256(path),
            bytes=path.stat().st_size,
            ops={},
            inputs=truth.inputs,
            outputs=truth.outputs,
            foreign=True,
        )
        others: tuple[str, ...] = ()
        try:
            graph = read_graph(path, plain.format)
            others = other_signatures(graph)
            artifact = dataclasses.replace(
                plain,
                precision=precision_of(graph),
                ops=dict(Counter(op.kind for op in graph.ops)),
            )
            usual = np.isin(np.array(truth.samples.kind), TYPICAL)
            interface = match_interface(
                path,
                artifact,
                graph,
                {name: array[usual] for name, array in truth.samples.inputs.items()},
                {name: array[usual] for name, array in truth.truth.items()},
                self._wanted,
            )
        except (ArtifactError, UserError) as error:
            if self._wanted and isinstance(error, UserError):
                raise
            says = str(error).replace(f"{path.parent}{os.sep}", "")  # of the copy
            if isinstance(error, TooLargeError):  # it must not be run
                raise TooLargeError(says) from error
            return dataclasses.replace(plain, notes=(says, *others))
        return dataclasses.replace(
            artifact,
            inputs=tuple(pair.filed for pair in interface.inputs),
            outputs=tuple(pair.filed for pair in interface.outputs),
            notes=(*interface.sentences, *others),
            network=made_from(path, graph, truth.trained, truth.folded),
        )
