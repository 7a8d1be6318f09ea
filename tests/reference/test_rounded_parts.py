"""Protects that the range of a part of an input is compared with that part's values only."""

from __future__ import annotations

import numpy as np
import pytest
from renormlite.artifacts.graphs.base import ArtifactGraph, GraphOp, GraphTensor, Quantization
from renormlite.reference.rounded_parts import rounded_part

STEPS = Quantization(np.array([0.5]), np.array([-128]), np.dtype(np.int8))
SAMPLES = np.arange(12, dtype=np.float32).reshape(2, 6)


def tensor(key: str, shape: tuple[int, ...], steps: Quantization | None = None) -> GraphTensor:
    dtype = np.dtype(np.float32 if steps is None else np.int8)
    return GraphTensor(key, key, shape, dtype, steps)


def constant(key: str, *numbers: int) -> GraphTensor:
    data = np.array(numbers, np.int32)
    return GraphTensor(key, key, data.shape, data.dtype, data=data)


def table(*ops: tuple[str, str, str], outputs: tuple[str, ...] = ()) -> ArtifactGraph:
    """Return a file with the input x, its integers q, and the columns a (0, 1) and b (4) of these.

    Args:
        ops: Further ops: kind, input, output.
        outputs: Outputs of the file.
    """
    tensors = [
        tensor("x", (1, 6)),
        *(tensor(k, (1, 6), STEPS) for k in ("q", "r")),
        tensor("f", ()),
    ]
    tensors += [tensor("a", (1, 2), STEPS), tensor("b", (1, 1), STEPS), tensor("p", (1, 4), STEPS)]
    tensors += [constant("at 0", 0, 0), constant("at 4", 0, 4), constant("two", 1, 2)]
    tensors += [constant("one", 1, 1)]
    pads = np.array([[0, 0], [2, 0]], np.int32)
    tensors.append(GraphTensor("pads", "pads", (2, 2), pads.dtype, data=pads))
    listed = [
        ("QUANTIZE", ("x",), "q"),
        ("SLICE", ("q", "at 0", "two"), "a"),
        ("SLICE", ("q", "at 4", "one"), "b"),
        ("PAD", ("a", "pads"), "p"),
        *((kind, (i,), o) for kind, i, o in ops),
    ]
    built = tuple(GraphOp(n, kind, "", i, (o,)) for n, (kind, i, o) in enumerate(listed))
    return ArtifactGraph({t.key: t for t in tensors}, ("x",), outputs, lambda: built)


@pytest.mark.parametrize(
    ("graph", "columns"),
    [
        (table(("TANH", "b", "f")), [4]),
        (table(("TANH", "p", "f"), ("DEQUANTIZE", "b", "f")), [0, 1, 4]),
        (table(outputs=("a",)), [0, 1]),
        (table(("QUANTIZE", "b", "f")), [4]),
    ],
)
def test_the_part_that_is_read_in_integers(graph: ArtifactGraph, columns: list[int]) -> None:
    np.testing.assert_array_equal(rounded_part(graph, "x", SAMPLES), SAMPLES[:, columns])


@pytest.mark.parametrize(
    "graph", [table(), table(("TANH", "q", "f")), table(("CAST", "x", "f"), ("TANH", "q", "f"))]
)
def test_inputs_that_are_read_whole_or_not_at_all(graph: ArtifactGraph) -> None:
    assert rounded_part(graph, "x", SAMPLES) is SAMPLES


def test_an_input_in_other_axes_is_returned_whole() -> None:
    graph = table(("TANH", "b", "f"))
    turned = SAMPLES.reshape(2, 2, 3)
    assert rounded_part(graph, "x", turned) is turned
