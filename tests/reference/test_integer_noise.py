"""Protects the steps that are read from an integer file, on graphs written by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from renormlite.artifacts.graphs.base import ArtifactGraph, GraphOp, GraphTensor, Quantization
from renormlite.artifacts.network import Network, Node
from renormlite.reference.file_weights import WeightMatch
from renormlite.reference.integer_noise import (
    Step,
    _computes_a_half,
    _from_range,
    input_steps,
    output_steps,
    rounded_values,
    rounding_steps,
    steps_with_weights,
)

# Integers from -128 to 127 with zero point -128 and step 1/2 stand for 0 to 127.5.
HALVES = Quantization(np.array([0.5]), np.array([-128]), np.dtype(np.int8))
BY_CHANNEL = Quantization(np.array([0.5, 0.25]), np.array([0, 0]), np.dtype(np.int8))
FLOATS = np.zeros((2, 4), np.float32)


def graph(*ops: tuple[str, str, str], **steps: Quantization | None) -> ArtifactGraph:
    """Return a graph of ops (kind, input, output); tensors `a` and `b` are the inputs."""
    tensors = {
        key: GraphTensor(key, key, (1, 4), np.dtype(np.int8 if known else np.float32), known)
        for key, known in steps.items()
    }
    listed = tuple(GraphOp(n, kind, "", (i,), (o,)) for n, (kind, i, o) in enumerate(ops))
    inputs = tuple(key for key in ("a", "b") if key in tensors)
    return ArtifactGraph(tensors, inputs, (), lambda: listed)


def test_the_steps_of_an_integer_input_are_its_own():
    assert input_steps(graph(a=HALVES), ["a"], [FLOATS]) == {"a": Step(0.5, 0.0, 127.5)}


@pytest.mark.parametrize("kind", ["QUANTIZE", "QuantizeLinear"])
@pytest.mark.parametrize("move", ["RESHAPE", "Transpose", "EXPAND_DIMS", "Unsqueeze"])
def test_the_steps_of_a_float_input_are_those_behind_it(kind, move):
    found = graph((move, "a", "m"), (kind, "m", "q"), a=None, m=None, q=HALVES)
    assert input_steps(found, ["a"], [FLOATS]) == {"a": Step(0.5, 0.0, 127.5)}


def test_inputs_without_steps_are_absent():
    other = graph(("CONV_2D", "a", "q"), a=None, q=HALVES)
    assert input_steps(other, ["a"], [FLOATS]) == {}
    assert input_steps(graph(a=None), ["a"], [FLOATS]) == {}
    assert input_steps(graph(a=BY_CHANNEL), ["a"], [FLOATS]) == {}


def test_integers_that_an_input_takes_unchanged_are_not_rounded():
    """The next input is still read."""
    pixels = np.zeros((2, 4), np.int8)
    both = graph(a=HALVES, b=HALVES)
    assert input_steps(both, ["a", "b"], [pixels, FLOATS]) == {"b": Step(0.5, 0.0, 127.5)}
    wide = np.zeros((2, 4), np.int32)  # is converted, so it is rounded
    assert set(input_steps(both, ["a", "b"], [wide, FLOATS])) == {"a", "b"}


def test_an_input_of_another_name_is_found_by_its_place():
    found = input_steps(graph(a=None, b=HALVES), ["x", "y"], [FLOATS, FLOATS])
    assert found == {"y": Step(0.5, 0.0, 127.5)}


def test_a_kernel_has_the_greatest_step_of_its_readers():
    """One op reads it twice, another one through a conversion."""
    wide = Quantization(np.array([2.0]), np.array([0]), np.dtype(np.int8))
    tensors = {
        key: GraphTensor(key, key, (1, 4), np.dtype(np.int8), known, data)
        for key, known, data in (
            *(("k", None, np.ones((1, 4), np.int8)), ("x", HALVES, None)),
            *(("e", None, None), ("d", None, None), ("narrow", HALVES, None), ("wide", wide, None)),
        )
    }
    ops = (
        GraphOp(0, "DEQUANTIZE", "", ("k",), ("e",)),
        GraphOp(1, "ADD", "", ("k", "k"), ("d",)),
        GraphOp(2, "CONV_2D", "", ("x", "d"), ("narrow",)),
        GraphOp(3, "CONV_2D", "", ("x", "e"), ("wide",)),
    )
    match = WeightMatch("conv", "conv", "kernel", "equal", tensors["k"])
    found = steps_with_weights(ArtifactGraph(tensors, ("x",), (), lambda: ops), [match])
    assert found == {"conv": Step(2.0, -256.0, 254.0)}


def network(*nodes: tuple[str, str, str], output: str) -> Network:
    """Return a network of nodes (name, operator, input)."""
    made = (Node(name, op, name, (read,), (None, 4), {}, {}) for name, op, read in nodes)
    return Network({"a": (None, 4)}, {"scores": output}, tuple(made))


def test_the_steps_of_a_float_output_are_those_before_it():
    """They belong to the node that computes the numbers, not to one that reshapes them."""
    kernel = ("dense", "dense", "a")
    filed = graph(("FULLY_CONNECTED", "a", "q"), ("DEQUANTIZE", "q", "y"), a=None, q=HALVES, y=None)
    filed = dataclasses.replace(filed, outputs=("y",))
    step = Step(0.5, 0.0, 127.5)
    assert output_steps(filed, network(kernel, output="dense")) == {"dense": step}
    reshaped = network(kernel, ("flat", "reshape", "dense"), output="flat")
    assert output_steps(filed, reshaped) == {"dense": step}


def test_outputs_computed_in_floats_have_no_steps():
    filed = graph(("FULLY_CONNECTED", "a", "q"), ("TANH", "q", "y"), a=None, q=HALVES, y=None)
    filed = dataclasses.replace(filed, outputs=("y",))
    assert output_steps(filed, network(("dense", "dense", "a"), output="dense")) == {}


@pytest.mark.parametrize(("kind", "size"), [("LOGISTIC", 2 * 2.0**-8), ("ABS", 0.5 / 2**8)])
def test_a_softplus_is_no_finer_than_the_logistic_function_inside_of_it(kind, size):
    """log(sigmoid(|x|)) doubles a step of the logistic function."""
    fine = Quantization(np.array([1e-3]), np.array([0]), np.dtype(np.int8))
    inner = Quantization(np.array([2.0**-8]), np.array([0]), np.dtype(np.int8))
    file = graph((kind, "a", "s"), ("LOG", "s", "l"), a=fine, s=inner, l=fine)
    node = Node("y", "softplus", "y", ("a",), (None, 1), {}, {})
    network = Network({"a": (None, 1)}, {"y": "y"}, (node,))
    flat = np.full((2, 1), np.log(np.expm1(0.5)), np.float32)  # softplus gives 0.5
    assert rounding_steps(network, file, [], {"a": flat})["y"].size == pytest.approx(size)


@pytest.mark.parametrize(("bits", "size"), [(8, 0.5 / 2**8), (16, 2 * 0.5 / 2**16)])
def test_steps_of_16_bits_cover_both_signs(bits, size):
    """Their zero point is 0, so that half of the integers are negative."""
    steps = Quantization(np.array([1e-3]), np.array([0]), np.dtype(f"int{bits}"))
    file = graph(("ABS", "a", "s"), a=steps, s=steps)
    node = Node("y", "absolute", "y", ("a",), (None, 1), {}, {})
    network = Network({"a": (None, 1)}, {"y": "y"}, (node,))
    values = np.full((2, 1), -0.5, np.float32)
    assert rounding_steps(network, file, [], {"a": values})["y"].size == pytest.approx(size)


def test_truth_values_and_indices_have_no_steps():
    """A file computes a mask in booleans and an index in int32; what they are made of it rounds."""
    steps = Quantization(np.array([1e-3]), np.array([0]), np.dtype(np.int8))
    file = graph(("ABS", "a", "s"), a=steps, s=steps)
    three = {"constant": np.full((), 3.0, np.float32)}
    shape, nodes = (None, 4), []
    for name, op, reads, constants in (
        ("double", "add", ("a", "a"), {}),
        ("above", "greater", ("double",), three),
        ("both", "minimum", ("above", "mask"), {}),
        ("neither", "logical_not", ("both",), {}),
        ("chosen", "select", ("neither", "double", "a"), {}),
        ("shifted", "add", ("tokens",), three),
        ("looked", "gather", ("shifted",), {"kernel": np.eye(9, 1, dtype=np.float32)}),
        ("y", "minimum", ("chosen", "mask"), {}),
    ):
        nodes.append(Node(name, op, name, reads, shape, {}, {}, constants))
    network = Network(dict.fromkeys(("a", "mask", "tokens"), shape), {"y": "y"}, tuple(nodes))
    samples = np.arange(8).reshape(2, 4)
    inputs = {"a": samples.astype(np.float32), "mask": samples > 2, "tokens": samples % 5}
    assert set(rounding_steps(network, file, [], inputs)) == {"double", "y"}


def nodes_in_a_row(*kinds: str, limits: tuple[str, ...] = ()) -> Network:
    """Return a network of nodes n0, n1, …, each of which reads the one before it."""
    made = []
    for place, kind in enumerate(kinds):
        reads = ("a",) if place == 0 else (f"n{place - 1}",)
        reads += ("a",) if kind in limits else ()  # a limit that is not a constant
        made.append(Node(f"n{place}", kind, f"n{place}", reads, (None, 4), {}, {}))
    made.append(Node("end", "dense", "end", (made[-1].name,), (None, 4), {}, {}))
    return Network({"a": (None, 4)}, {"y": "end"}, tuple(made))


STEP = Step(0.5, 0.0, 127.5)


@pytest.mark.parametrize(
    ("kinds", "limits", "shown"),
    [
        (("dense",), (), "n0"),
        (("dense", "relu"), (), "n1"),
        (("dense", "clip"), (), "n1"),
        (("dense", "reshape", "relu"), (), "n2"),
        (("dense", "reshape"), (), "n0"),  # nothing is lost in between
        (("dense", "max_pool", "relu"), (), "n2"),
        (("dense", "reduce_max"), (), "n1"),
        (("dense", "maximum", "minimum"), (), "n2"),
        (("dense", "maximum"), ("maximum",), "n0"),  # of two values of the network
        (("dense", "tanh", "relu"), (), "n0"),
        (("dense", "hard_sigmoid"), (), None),
        (("dense", "relu", "hard_sigmoid"), (), None),
    ],
)
def test_where_the_cost_of_a_rounding_is_measured(kinds, limits, shown):
    network = nodes_in_a_row(*kinds, limits=limits)
    found = rounded_values(network, {"n0": STEP})
    assert found == ({} if shown is None else {"n0": shown})


def test_a_value_that_is_read_twice_is_measured_as_it_is():
    network = nodes_in_a_row("dense", "relu")
    more = Node("other", "tanh", "other", ("n0",), (None, 4), {}, {})
    twice = Network(network.inputs, network.outputs, (*network.nodes, more))
    assert rounded_values(twice, {"n0": STEP}) == {"n0": "n0"}
    # So is an output of the network, and what has steps of its own.
    output = Network(network.inputs, {"y": "n0"}, network.nodes)
    assert rounded_values(output, {"n0": STEP}) == {"n0": "n0"}
    found = rounded_values(network, {"n0": STEP, "n1": STEP})
    assert found == {"n0": "n0", "n1": "n1"}


@pytest.mark.parametrize(
    ("kinds", "slope", "rounded"),
    [
        (("tanh",), 0.0, {"n0"}),
        (("reshape",), 0.0, set()),
        (("tanh", "relu"), 0.0, {"n0"}),  # converters compute it together with the tanh
        (("tanh", "relu"), 0.25, {"n0", "n1"}),
        (("reshape", "relu"), 0.0, {"n1"}),
        (("relu",), 0.0, {"n0"}),
    ],
)
def test_which_operators_without_weights_round(kinds, slope, rounded):
    nodes = []
    for place, kind in enumerate(kinds):
        attributes = {"negative_slope": slope} if kind == "relu" else {}
        attributes |= {"target_shape": (4,)} if kind == "reshape" else {}
        reads = "a" if place == 0 else f"n{place - 1}"
        nodes.append(Node(f"n{place}", kind, f"n{place}", (reads,), (None, 4), attributes, {}))
    network = Network({"a": (None, 4)}, {"y": nodes[-1].name}, tuple(nodes))
    file = graph(("ABS", "a", "s"), a=HALVES, s=HALVES)
    x = {"a": np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)}
    assert set(rounding_steps(network, file, [], x)) == rounded


@pytest.mark.parametrize(
    ("rows", "bits", "size"),
    [
        ([[-1.0, 3.0]] * 3, 8, 4 / 256),
        ([[1.0, 3.0]] * 3, 8, 3 / 256),  # zero is in every range
        ([[-3.0, -1.0]] * 3, 8, 3 / 256),
        ([[-1.0, 3.0]] * 3, 16, 6 / 65536),
        ([[-4.0, 3.0]] * 3, 16, 8 / 65536),
        ([[0.0, 1.0], [0.0, 2.0], [-9.0, 100.0]], 8, 2 / 256),  # the median of the samples
        ([[0.0, np.inf]] * 3, 8, 0.0),
    ],
)
def test_steps_that_cover_most_samples(rows, bits, size):
    found = _from_range(np.array(rows), bits)
    assert found.size == pytest.approx(size)
    assert (found.low, found.high) == (-np.inf, np.inf)


@pytest.mark.parametrize(
    ("fused", "negated", "found"),
    [
        ([True], True, True),
        ([True, True], True, True),
        ([True, False], True, False),
        ([False], True, False),
        ([True], False, False),
        ([], True, False),
    ],
)
def test_operators_that_compute_the_positive_half_of_a_layer(fused, negated, found):
    """A PReLU of 16 bits is relu(Wx) and relu(-Wx), each of a kernel of its own."""
    data = np.array([[1, -2, 3]], np.int8)
    other = -data if negated else data + 1
    tensors = {
        key: GraphTensor(key, key, (1, 3), np.dtype(np.int8), None, array)
        for key, array in (("k", data), ("n", other))
    }
    ops = [
        GraphOp(n, "FULLY_CONNECTED", "", ("x", "k"), (f"y{n}",), {"fusedActivationFunction": fuse})
        for n, fuse in enumerate(fused)
    ]
    file = ArtifactGraph(tensors, (), (), lambda: tuple(ops))
    assert _computes_a_half(file, tensors["k"], ops) is found
    unknown = dataclasses.replace(tensors["k"], data=None)
    assert not _computes_a_half(file, unknown, ops)
