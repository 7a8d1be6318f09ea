"""Protects predictions of what ONNX Runtime computes in floats, on every 8-bit integer."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from renormlite.artifacts.graphs import read_graph
from renormlite.reference.integer.prediction import predict
from renormlite.reference.rounding.quantized import NotKnownError

SHAPE = (1, 8, 32)  # every 8-bit integer occurs
LEVELS = (
    onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
)


class Graph:
    """Builds a graph of 8-bit inputs "x" and "z" with the given number at both ends of a step."""

    def __init__(self) -> None:
        self.nodes, self.constants = [], []

    def constant(self, value) -> str:
        name = f"constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, kind: str, *inputs, outputs: int = 1, **attributes):
        names = [f"{kind}{len(self.nodes)}_{i}" for i in range(outputs)]
        keys = [key if isinstance(key, str) else self.constant(key) for key in inputs]
        self.nodes.append(helper.make_node(kind, keys, names, **attributes))
        return names[0] if outputs == 1 else names

    def floats(self, name: str) -> str:
        return self.node("Cast", name, to=1)

    def saved(self, function, scale: float, path) -> None:
        """Write "y", the function of the numbers of "x" and "z" in steps of a scale."""
        steps = [np.float32(0.031), np.uint8(101)]
        x, z = (self.node("DequantizeLinear", key, *steps) for key in ("x", "z"))
        result = function(self, x, z)
        y = [np.float32(scale), np.uint8(128)]
        last = self.nodes
        last.append(
            helper.make_node("QuantizeLinear", [result, *(self.constant(v) for v in y)], ["y"])
        )
        infos = [helper.make_tensor_value_info(key, 2, SHAPE) for key in ("x", "z")]
        out = [helper.make_tensor_value_info("y", 2, None)]
        graph = helper.make_graph(last, "floats", infos, out, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
        model.ir_version = 8
        onnx.save(onnx.shape_inference.infer_shapes(model), path)


def reduced(kind: str, scale: float = 0.05):
    return lambda g, x, z: g.node(kind, x, axes=[2], keepdims=0), scale


def unary(kind: str, scale: float, **attributes):
    return lambda g, x, z: g.node(kind, x, **attributes), scale


def within(kind: str, scale: float):
    """Return a function of numbers between -1 and 1."""
    return lambda g, x, z: g.node(kind, g.node("Div", x, np.float32(5.0))), scale


def relation(kind: str):
    return lambda g, x, z: g.floats(g.node(kind, x, z)), 0.01


def logic(kind: str):
    def function(g, x, z):
        sides = (g.node("Greater", side, np.float32(0.3)) for side in (x, z))
        return g.floats(g.node(kind, *sides))

    return function, 0.01


def rows(values) -> np.ndarray:
    return np.asarray(values, np.int64)


FUNCTIONS = {
    **{kind: unary(kind, 0.05) for kind in ("Ceil", "Floor", "Round", "Sin", "Cos", "Atan")},
    **{kind: unary(kind, 0.3) for kind in ("Sinh", "Cosh", "Asinh")},
    **{kind: within(kind, 0.02) for kind in ("Asin", "Acos", "Atanh", "Tan")},
    "LogSoftmax": unary("LogSoftmax", 0.08, axis=2),
    "LogSoftmax of rows": unary("LogSoftmax", 0.08, axis=1),
    "Softmax of rows": unary("Softmax", 1 / 256, axis=1),
    "ThresholdedRelu": unary("ThresholdedRelu", 0.05, alpha=0.4),
    "GlobalMaxPool": unary("GlobalMaxPool", 0.05),
    **{kind: reduced(kind) for kind in ("ReduceL2", "ReduceMax", "ReduceLogSumExp")},
    "ReduceL1": reduced("ReduceL1", 1.0),
    "ReduceSumSquare": reduced("ReduceSumSquare", 3.0),
    "ReduceProd": (
        lambda g, x, z: g.node("ReduceProd", g.node("Cos", x), axes=[1], keepdims=1),
        0.005,
    ),
    **{
        kind: relation(kind)
        for kind in ("Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal")
    },
    **{kind: logic(kind) for kind in ("And", "Or", "Xor")},
    "Not": (lambda g, x, z: g.floats(g.node("Not", g.node("Less", x, z))), 0.01),
    "IsNaN": (lambda g, x, z: g.floats(g.node("IsNaN", g.node("Log", x))), 0.01),
    "IsInf": (lambda g, x, z: g.floats(g.node("IsInf", g.node("Reciprocal", x))), 0.01),
    "Where": (lambda g, x, z: g.node("Where", g.node("Less", x, z), x, z), 0.04),
    "Mod": (lambda g, x, z: g.node("Mod", x, np.float32(0.7), fmod=1), 0.01),
    "Sum": (lambda g, x, z: g.node("Sum", x, z, x), 0.1),
    "ArgMax": (lambda g, x, z: g.floats(g.node("ArgMax", x, axis=1, keepdims=0)), 1.0),
    "ArgMin": (lambda g, x, z: g.floats(g.node("ArgMin", x, axis=2)), 1.0),
    "TopK": (lambda g, x, z: g.node("TopK", x, rows([5]), outputs=2, axis=2)[0], 0.05),
    "places of TopK": (
        lambda g, x, z: g.floats(g.node("TopK", x, rows([5]), outputs=2, largest=0)[1]),
        1.0,
    ),
    "CumSum": (lambda g, x, z: g.node("CumSum", x, rows(1)), 0.3),
    "CumSum before": (
        lambda g, x, z: g.node("CumSum", x, rows(2), exclusive=1, reverse=1),
        1.0,
    ),
    "OneHot": (
        lambda g, x, z: g.node(
            "OneHot", g.node("ArgMax", x, axis=2), rows([32]), np.float32([-0.5, 1]), axis=2
        ),
        0.01,
    ),
    "Expand": (lambda g, x, z: g.node("Expand", x, rows([2, 8, 32])), 0.05),
    "SpaceToDepth": (
        lambda g, x, z: g.node("SpaceToDepth", g.node("Unsqueeze", x, rows([0])), blocksize=4),
        0.05,
    ),
    "ReverseSequence": (
        lambda g, x, z: g.node("ReverseSequence", x, rows([5]), batch_axis=0, time_axis=1),
        0.05,
    ),
    "sequences first": (
        lambda g, x, z: g.node(
            "ReverseSequence",
            g.node("Reshape", x, rows([32, 8])),
            rows([3, 32, 1, 7, 8, 9, 30, 31]),
        ),
        0.05,
    ),
    "Compress": (
        lambda g, x, z: g.node("Compress", x, np.array([True, False, True]), axis=1),
        0.05,
    ),
    "GatherElements": (
        lambda g, x, z: g.node("GatherElements", x, g.node("ArgMax", z, axis=2), axis=2),
        0.05,
    ),
    "Gather": (
        lambda g, x, z: g.node("Gather", x, g.node("ArgMin", z, axis=1, keepdims=0), axis=1),
        0.05,
    ),
    "GatherND": (
        lambda g, x, z: g.node(
            "GatherND",
            g.node("Reshape", x, rows([8, 32])),
            g.node("Unsqueeze", g.node("ArgMax", z, axis=1), rows([3])),
        ),
        0.05,
    ),
    "GatherND by rows": (
        lambda g, x, z: g.node("GatherND", x, g.node("ArgMax", z, axis=2), batch_dims=2),
        0.05,
    ),
}


def samples():
    """Return every integer, then random ones, then those at the ends, for both inputs."""
    rng = np.random.default_rng(0)
    every = np.arange(256, dtype=np.uint8).reshape(SHAPE)
    found = [{"x": every, "z": rng.permutation(every.ravel()).reshape(SHAPE)}]
    for _ in range(6):
        found.append({key: rng.integers(0, 256, SHAPE).astype(np.uint8) for key in "xz"})
    found.append({key: rng.choice([0, 101, 255], SHAPE).astype(np.uint8) for key in "xz"})
    return found


@pytest.mark.parametrize("name", FUNCTIONS)
def test_floats_between_integers(name, tmp_path):
    function, scale = FUNCTIONS[name]
    Graph().saved(function, scale, tmp_path / "floats.onnx")
    found = predict(read_graph(tmp_path / "floats.onnx", "onnx"), "onnx", samples())
    for level in LEVELS:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = level
        session = onnxruntime.InferenceSession(str(tmp_path / "floats.onnx"), options)
        got = np.concatenate([session.run(None, sample)[0] for sample in samples()])
        assert got.min() < got.max()
        differing = [np.sum(one.outputs["y"] != got) for one in found]
        assert min(differing) == 0, (level, differing)


@pytest.mark.parametrize(
    ("kind", "attributes", "why"),
    [("ArgMax", {"select_last_index": 1}, "last of equal"), ("TopK", {"sorted": 0}, "any order")],
)
def test_other_forms_are_not_predicted(kind, attributes, why, tmp_path):
    def function(g, x, z):
        if kind == "TopK":
            return g.node("TopK", x, rows([5]), outputs=2, **attributes)[0]
        return g.floats(g.node("ArgMax", x, **attributes))

    Graph().saved(function, 0.05, tmp_path / "floats.onnx")
    with pytest.raises(NotKnownError, match=why):
        predict(read_graph(tmp_path / "floats.onnx", "onnx"), "onnx", samples())
