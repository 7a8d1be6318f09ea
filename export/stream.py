"""States for the samples of a streaming model, whose states are inputs and outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import keras
import numpy as np

from ..artifacts.manifest import TensorSpec
from ..artifacts.sample_kinds import typical_samples
from ..artifacts.samples import SampleSet
from . import golden_set as golden
from .signature import Signature


@dataclasses.dataclass(frozen=True)
class Stream:
    """A model that is called once per step of a sequence.

    Attributes:
        model: The model, with its states among its inputs and outputs.
        signature: Its inputs and outputs.
        states: Name of each state input to the name of the output with its next value.
    """

    model: keras.Model
    signature: Signature
    states: Mapping[str, str]

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs other than states, for which the user gives samples."""
        return tuple(t for t in self.signature.inputs if t.name not in self.states)

    def completed(self, samples: SampleSet) -> SampleSet:
        """Return the samples with the state of the model before each of them.

        The samples are treated as a sequence, with as many parallel streams as the batch size of
        the model. The initial states are zero.
        """
        states = self._states(samples.arrays, samples.count)
        return dataclasses.replace(samples, arrays={**samples.arrays, **states})

    def typical(self, samples: golden.Samples) -> golden.Samples:
        """Return a golden set's inputs, the typical samples with states of the model.

        Random numbers are no states: the states of a GRU, for example, lie between -1 and 1.
        """
        _, chosen = typical_samples(np.array(samples.kind))
        usual = {name: array[chosen] for name, array in samples.inputs.items()}
        states = {name: samples.inputs[name].copy() for name in self.states}
        for name, state in self._states(usual, len(chosen)).items():
            states[name][chosen] = state
        return dataclasses.replace(samples, inputs={**samples.inputs, **states})

    def _states(self, samples: golden.Arrays, count: int) -> dict[str, np.ndarray]:
        """Return the (count, …) states before each sample, by the name of their input."""
        if not self.states:
            return {}
        taking = [t for t in self.signature.inputs if t.name in self.states]
        outputs = [tensor.name for tensor in self.signature.outputs]
        size = taking[0].shape[0] or 1
        states = {t.name: np.zeros([size, *(n or 1 for n in t.shape[1:])], t.dtype) for t in taking}
        met: dict[str, list[np.ndarray]] = {name: [] for name in states}
        for start in range(0, count, size):
            chosen = np.arange(start, start + size) % count
            for name, state in states.items():
                met[name].append(state)
            batch = {t.name: samples[t.name][chosen] for t in self.inputs} | states
            flat = [batch[tensor.name] for tensor in self.signature.inputs]
            packed = keras.tree.pack_sequence_as(self.model.input, flat)
            given = keras.tree.flatten(self.model(packed, training=False))
            found = dict(zip(outputs, map(keras.ops.convert_to_numpy, given), strict=True))
            states = {name: found[self.states[name]] for name in states}
        return {name: np.concatenate(parts)[:count] for name, parts in met.items()}
