"""Recurrent layers in one op, unrolled into the operators of the checks.

The formulas are those of ONNX' operators LSTM and GRU; TFLite's LSTM is the same with other names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...artifacts.graphs.base import GraphOp
from .writer import Shape, UnknownFormError, Writer

# Greatest number of unrolled steps, which limits the size of the network.
_MOST_STEPS = 1024


@dataclass(frozen=True)
class Gates:
    """The weights of one direction.

    Attributes:
        kernel: (I, G·H), with the gates concatenated.
        recurrent: (H, G·H).
        bias: (G·H,) of the inputs.
        recurrent_bias: (G·H,) of the state.
    """

    kernel: np.ndarray
    recurrent: np.ndarray
    bias: np.ndarray
    recurrent_bias: np.ndarray

    @property
    def units(self) -> int:
        """H."""
        return int(self.recurrent.shape[0])


class Unroller:
    """Appends the nodes of a recurrent layer; values have the shapes (1, …) and (T, …).

    Args:
        writer: The network to append to.
        op: The op.
    """

    def __init__(self, writer: Writer, op: GraphOp) -> None:
        self._writer, self._op = writer, op

    def _do(self, kind: str, *names: str, **attributes: object) -> str:
        return self._writer.part(self._op, kind, names, attributes, lead=0).name

    def _dense(self, name: str, kernel: np.ndarray, bias: np.ndarray) -> str:
        weights = {"kernel": kernel, "bias": bias}
        return self._writer.part(self._op, "dense", [name], {}, weights, lead=0).name

    def cut(self, name: str, axis: int, start: int, stop: int) -> str:
        """Append a part of a matrix along an axis."""
        cuts: list[list[int | None]] = [[None, None, 1], [None, None, 1]]
        cuts[axis] = [start, stop, 1]
        return self._do("slice", name, slices=cuts)

    def _gate(self, name: str, place: int, units: int) -> str:
        return self.cut(name, 1, place * units, (place + 1) * units)

    def zeros(self, x: str, units: int) -> str:
        """Append a state of zeros."""
        weights = {"constant": np.zeros((1, units))}
        return self._writer.part(self._op, "constant", [x], {}, weights, lead=0).name

    def joined(self, names: Sequence[str], axis: int = 0) -> str:
        """Append a concatenation of steps."""
        return names[0] if len(names) == 1 else self._do("concatenate", *names, axis=axis + 1)

    def lstm(
        self, x: str, steps: int, gates: Gates, state: str, cell: str, backward: bool
    ) -> tuple[list[str], str]:
        """Append an LSTM whose gates are input, output, forget, cell.

        Args:
            x: (T, I).
            steps: T.
            gates: The weights.
            state: (1, H).
            cell: (1, H).
            backward: Whether the steps are processed in reverse order.

        Returns:
            The states of all steps in the order of the inputs, and the last cell.
        """
        units, states = gates.units, [""] * steps
        given = self._dense(x, gates.kernel, gates.bias)
        for step in _order(steps, backward):
            sums = self._do(
                "add",
                self.cut(given, 0, step, step + 1),
                self._dense(state, gates.recurrent, gates.recurrent_bias),
            )
            i, o, f = (self._do("sigmoid", self._gate(sums, k, units)) for k in range(3))
            candidate = self._do("tanh", self._gate(sums, 3, units))
            kept, new = self._do("multiply", f, cell), self._do("multiply", i, candidate)
            cell = self._do("add", kept, new)
            state = self._do("multiply", o, self._do("tanh", cell))
            states[step] = state
        return states, cell

    def gru(
        self, x: str, steps: int, gates: Gates, state: str, after: bool, backward: bool
    ) -> list[str]:
        """Append a GRU whose gates are update, reset, candidate.

        Args:
            x: (T, I).
            steps: T.
            gates: The weights.
            state: (1, H).
            after: Whether the reset gate is applied after the recurrent matrix product.
            backward: Whether the steps are processed in reverse order.

        Returns:
            The states of all steps in the order of the inputs.
        """
        units, states = gates.units, [""] * steps
        given = self._dense(x, gates.kernel, gates.bias)
        split, r, b = 2 * units, gates.recurrent, gates.recurrent_bias
        for step in _order(steps, backward):
            now = self.cut(given, 0, step, step + 1)
            gated = self._do(
                "add", self.cut(now, 1, 0, split), self._dense(state, r[:, :split], b[:split])
            )
            z, reset = (self._do("sigmoid", self._gate(gated, k, units)) for k in range(2))
            if after:
                held = self._do("multiply", reset, self._dense(state, r[:, split:], b[split:]))
            else:
                held = self._dense(self._do("multiply", reset, state), r[:, split:], b[split:])
            candidate = self._do("tanh", self._do("add", self._gate(now, 2, units), held))
            # (1 - z) c + z h = c + z (h - c)
            moved = self._do("multiply", z, self._do("subtract", state, candidate))
            state = self._do("add", candidate, moved)
            states[step] = state
        return states


def _order(steps: int, backward: bool) -> range:
    if not 0 < steps <= _MOST_STEPS:
        raise UnknownFormError(f"{steps} steps")
    return range(steps - 1, -1, -1) if backward else range(steps)


def onnx_recurrent(writer: Writer, op: GraphOp) -> None:
    """Append ONNX' LSTM or GRU of a batch of one, layout 0."""
    a = op.attributes
    usual = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"]}[op.kind]
    direction = str(a.get("direction", "forward"))
    backward = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[direction]
    if (
        list(a.get("activations", usual * len(backward))) != usual * len(backward)
        or a.get("layout")
        or a.get("clip")
        or a.get("input_forget")
        or writer.optional(op, 7)
        or (writer.optional(op, 4) and op.inputs[4] not in writer.constants)
    ):
        raise UnknownFormError("another form")
    filed = writer.filed(op.inputs[0])
    if len(filed) != 3 or filed[1] != 1:
        raise UnknownFormError("a batch")
    steps, x = filed[0], writer.read(op.inputs[0], (filed[0], filed[2]))
    count = {"LSTM": 4, "GRU": 3}[op.kind]
    kernels, recurrents = (writer.constant(op.inputs[place]) for place in (1, 2))
    units, key = recurrents.shape[-1], writer.optional(op, 3)
    biases = writer.constant(key) if key else np.zeros((len(kernels), 2 * count * units))
    unroller = Unroller(writer, op)
    every, lasts, cells = [], [], []
    for place, back in enumerate(backward):
        half = np.split(biases[place], 2)
        gates = Gates(kernels[place].T, recurrents[place].T, half[0], half[1])
        state, cell = (_initial(writer, unroller, op, at, place, units, x) for at in (5, 6))
        if op.kind == "LSTM":
            states, cell = unroller.lstm(x, steps, gates, state, cell, back)
            cells.append(cell)
        else:
            after = bool(a.get("linear_before_reset"))
            states = unroller.gru(x, steps, gates, state, after, back)
        every.append(unroller.joined(states))
        lasts.append(states[0 if back else -1])
    wide = (steps, len(backward), 1, units)
    outputs: list[tuple[str, Shape]] = [(unroller.joined(every, axis=1), wide)]
    outputs += [(unroller.joined(n), (len(backward), 1, units)) for n in (lasts, cells) if n]
    for output, (name, shape) in zip(op.outputs, outputs):
        if output:
            writer.give(output, writer.named(name, shape))


def _initial(
    writer: Writer, unroller: Unroller, op: GraphOp, at: int, place: int, units: int, x: str
) -> str:
    """Return the first state of one direction."""
    key = writer.optional(op, at) if (op.kind, at) != ("GRU", 6) else ""
    if not key:
        return unroller.zeros(x, units)
    name = writer.read(key, (writer.filed(key)[0], units))
    return name if writer.filed(key)[0] == 1 else unroller.cut(name, 0, place, place + 1)


def tflite_lstm(writer: Writer, op: GraphOp) -> None:
    """Append TFLite's UNIDIRECTIONAL_SEQUENCE_LSTM of a batch of one.

    Its inputs are the sequence; kernels and recurrent kernels of input, forget, cell and output
    gate; three peepholes; four biases; a projection; two states.
    """
    peepholes = any(writer.optional(op, place) for place in (9, 10, 11, 16, 17))
    if peepholes or op.attributes.get("fusedActivationFunction") != 4 or not op.inputs[1]:
        raise UnknownFormError("another form")
    filed = writer.filed(op.inputs[0])
    steps = filed[0 if op.attributes.get("timeMajor") else 1]
    x = writer.read(op.inputs[0], (steps, filed[2]))
    order = (0, 3, 1, 2)  # input, output, forget, cell
    kernel, recurrent = (
        np.concatenate([writer.constant(op.inputs[start + gate]).T for gate in order], axis=1)
        for start in (1, 5)
    )
    bias = np.concatenate([writer.constant(op.inputs[12 + gate]).reshape(-1) for gate in order])
    gates, unroller = Gates(kernel, recurrent, bias, np.zeros_like(bias)), Unroller(writer, op)
    state, cell = unroller.zeros(x, gates.units), unroller.zeros(x, gates.units)
    states, _ = unroller.lstm(x, steps, gates, state, cell, backward=False)
    shape = (steps, 1, gates.units) if op.attributes.get("timeMajor") else (1, steps, gates.units)
    writer.give(op.outputs[0], writer.named(unroller.joined(states), shape))
