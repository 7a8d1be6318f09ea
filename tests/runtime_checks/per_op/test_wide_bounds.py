"""An output in steps almost as large as its numbers is compared, although it cannot be told."""

from __future__ import annotations

import numpy as np
import pytest
from renormlite.artifacts.graphs.base import ArtifactGraph, GraphOp, GraphTensor, Quantization
from renormlite.artifacts.network import Network, Node
from renormlite.runtime_checks.per_op.walk import walk

FACTOR, SHIFT = np.array([1.5, -2.0], np.float32), np.array([0.5, 1.0], np.float32)
FINE, WIDE = 1 / 16, 1.0
BYTES = np.dtype(np.int8)


def network() -> Network:
    """Y = factor x² + shift, for two channels."""
    shape, affine = (None, 3, 2), {"scale": FACTOR, "shift": SHIFT}
    nodes = (
        Node("square", "multiply", "square", ("x", "x"), shape, {}, {}),
        Node("y", "affine", "norm", ("square",), shape, {"axis": 2}, {}, affine),
    )
    return Network({"x": shape}, {"y": "y"}, nodes)


def file() -> ArtifactGraph:
    """The square, a transposed copy of it, and the affine in two ops of integers."""

    def tensor(key: str, shape: tuple[int, ...], step: float, data: object = None) -> GraphTensor:
        steps = Quantization(np.array([step]), np.array([0]), BYTES)
        numbers = None if data is None else np.rint(np.asarray(data) / step).astype(np.int8)
        return GraphTensor(key, key, shape, BYTES, steps, numbers)

    tensors = (
        tensor("x", (1, 3, 2), FINE),
        tensor("product", (1, 3, 2), FINE),
        tensor("copy", (1, 2, 3), FINE),
        tensor("factor", (2,), FINE, FACTOR),
        tensor("scaled", (1, 3, 2), WIDE),
        tensor("shift", (2,), FINE, SHIFT),
        tensor("sum", (1, 3, 2), WIDE),
    )
    ops = (
        GraphOp(0, "MUL", "", ("x", "x"), ("product",)),
        GraphOp(1, "TRANSPOSE", "", ("product",), ("copy",)),
        GraphOp(2, "MUL", "", ("product", "factor"), ("scaled",)),
        GraphOp(3, "ADD", "", ("scaled", "shift"), ("sum",)),
    )
    return ArtifactGraph({t.key: t for t in tensors}, ("x",), ("sum",), lambda: ops)


@pytest.mark.parametrize("wrong", [0, 2])
def test_an_output_in_wide_steps(wrong):
    x = np.array([[[4, 8], [-12, 4], [0, 8]], [[12, 0], [8, -12], [8, 4]]]) * FINE
    product = np.rint(x * x / FINE)
    scaled = np.rint(product * FINE * FACTOR / WIDE)
    total = np.rint(scaled + SHIFT / WIDE)
    total[1, 2, 1] += wrong
    got = {"product": product, "copy": product.transpose(0, 2, 1), "scaled": scaled, "sum": total}
    shown = {key: value[:, None].astype(np.int8) for key, value in got.items()}
    walked = walk(network(), file(), shown, {"x": x.astype(np.float32)}, [])
    checked = {check.node: check.op.outputs[0] for check in walked.checks}
    assert checked == {"square": "copy"} | ({} if wrong else {"y": "sum"})
    assert [culprit.key for culprit in walked.culprits] == (["sum"] if wrong else [])
