"""Protects the sentence about a converter that died: it names the layer."""

from __future__ import annotations

import os
import signal

import keras
import pytest
import renormlite as rl
from keras import layers
from renormlite.child import shared
from renormlite.export.formats.fence import UnnamedRefusalError, fenced, needs_child
from renormlite.export.formats.freeze import FrozenGraph, freeze
from renormlite.export.signature import signature_of


def die_of(ops: list[str]) -> int:
    if "Elu" in ops:
        os.kill(os.getpid(), signal.SIGSEGV)
    return len(ops)


def _convert(graph: FrozenGraph) -> int:
    return shared.call(die_of, [node.op for node in graph.graph_def.node])


def _frozen(*stack: layers.Layer) -> FrozenGraph:
    model = keras.Sequential([keras.Input((4,), name="x"), *stack])
    return freeze(model, signature_of(model))


def test_the_layer_that_crashed_a_converter_is_named():
    dense = [layers.Dense(3, name=f"dense_{i}") for i in range(5)]
    graph = _frozen(*dense[:3], layers.ELU(name="at_fault"), *dense[3:])
    with pytest.raises(rl.UserError, match=r"The maker died of SIGSEGV on layer 'at_fault'\."):
        fenced(_convert, graph, "The maker")
    fine = _frozen(*dense)
    assert fenced(_convert, fine, "The maker") == len(fine.graph_def.node)


def test_the_layer_that_a_converter_refused_is_named():
    def convert(graph: FrozenGraph) -> None:
        if any(node.op == "Elu" for node in graph.graph_def.node):
            raise UnnamedRefusalError("too many indices.")

    graph = _frozen(layers.Dense(3), layers.ELU(name="at_fault"), layers.Dense(3))
    with pytest.raises(rl.UserError) as error:
        fenced(convert, graph, "The maker")
    assert str(error.value).startswith(
        "The maker refused the model on layer 'at_fault': too many indices. Replace"
    )


def test_only_float_files_of_ordinary_operators_are_converted_in_this_process():
    ordinary = _frozen(layers.Dense(3, activation="relu"))
    assert not needs_child(ordinary, "float32")
    assert needs_child(ordinary, "int8")
    assert needs_child(_frozen(layers.Lambda(keras.ops.cumsum)), "float32")
