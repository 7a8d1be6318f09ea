"""Finds the layer of a float32 file that the converter of the format converts wrongly."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..errors import UserError
from .files import described
from .formats.base import Job, format_named
from .formats.fence import layer_ends
from .formats.freeze import FrozenGraph
from .host import run_artifact
from .quantization.calibration import in_file_order
from .wrong_files import MOST_DECIDED, unlike

_SAMPLES = 4


def faulty_layer(job: Job, format_name: str, inputs: Mapping[str, np.ndarray]) -> str | None:
    """Return the first layer after which a file differs from its graph; None if there is none.

    The network is converted up to every layer in turn, since other outputs would keep the converter
    from merging layers.

    Args:
        job: What the file was made from.
        format_name: Its format.
        inputs: Keras input name to (N, …) samples.
    """
    few = {name: values[:_SAMPLES] for name, values in inputs.items()}
    for layer, op in layer_ends(job.graph).items():
        with contextlib.suppress(UserError):  # this part alone cannot be converted
            part = dataclasses.replace(job, graph=job.graph.until([op]))
            given, wanted = _file_output(part, format_name, few), _graph_output(part.graph, few)
            if unlike(given, wanted, wanted).mean() > MOST_DECIDED:
                return layer
    return None


def _file_output(job: Job, format_name: str, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the (N, …) only output of the file of a graph."""
    file_format = format_named(format_name)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"part{file_format.suffix}")
        file_format.write(job, path)
        artifact = described(path, format_name, job, file_format.validate(path, job))
        (output,) = run_artifact(artifact, path.parent, inputs).values()
    return output


def _graph_output(graph: FrozenGraph, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the (N, …) only output of a graph, computed by TensorFlow."""
    import tensorflow as tf

    size = graph.signature.inputs[0].shape[0] or 1
    count = min(len(values) for values in inputs.values())
    with tf.Graph().as_default() as imported:
        tf.import_graph_def(graph.with_weights().graph_def, name="")
    runs = []
    with tf.compat.v1.Session(graph=imported) as session:
        for start in range(0, count, size):
            chosen = np.arange(start, start + size) % count
            fed = {
                f"{tensor.op.name}:0": in_file_order(inputs[spec.keras_name][chosen], spec.axes)
                for tensor, spec in zip(graph.inputs, graph.signature.inputs, strict=True)
            }
            runs.append(session.run(f"{graph.outputs[0].op.name}:0", fed))
    return np.concatenate(runs)[:count]
