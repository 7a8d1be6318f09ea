"""Shapes and types that Keras declares for a layer's output, and that the layer does not have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers as kl
from keras import tree

from .graph import Value


def is_misdeclared(layer: Any, given: Value) -> bool:
    """Return whether a layer computes another shape than Keras declares.

    Keras crops at random in training only, and reverses the axes of a leading ellipsis.

    Args:
        layer: A layer or operation.
        given: Its first input.
    """
    if isinstance(layer, kl.RandomCrop):
        return given.shape != tuple(layer.compute_output_shape(given.shape))
    if not isinstance(layer, kl.EinsumDense) or not layer.equation.startswith("..."):
        return False
    before = layer.equation.partition(",")[0]
    hidden = given.shape[1 : given.rank - len(before) + 3]
    return hidden != hidden[::-1]


def returns_integers(node: Any, dtypes: Sequence[str]) -> bool:
    """Return whether a layer returns integers where Keras declares floats.

    Most layers without weights declare their own dtype and do not convert integers.

    Args:
        node: The Keras node of its call.
        dtypes: Dtype of each input.
    """
    layer = node.operation
    floats = any("float" in tensor.dtype for tensor in node.outputs)
    if not floats or any("float" in dtype for dtype in dtypes) or not dtypes:
        return False
    if not isinstance(layer, keras.Layer) or layer.weights:
        return False
    import tensorflow as tf

    def call(*tensors: tf.Tensor) -> Any:
        given = {id(t): tensor for t, tensor in zip(node.input_tensors, tensors, strict=True)}
        args, kwargs = tree.map_structure(
            lambda x: given.get(id(x), x), (node.arguments.args, node.arguments.kwargs)
        )
        return layer(*args, **kwargs)

    specs = [tf.TensorSpec(t.shape, d) for t, d in zip(node.input_tensors, dtypes, strict=True)]
    try:
        traced = tf.function(call).get_concrete_function(*specs)
    except Exception:  # the layer has no kernel for integers, so the model cannot run
        return False
    return not any("float" in t.dtype.name for t in tree.flatten(traced.structured_outputs))


def as_computed(tensor: keras.KerasTensor) -> keras.KerasTensor:
    """Return a symbolic tensor with the dtype that Keras computes, which may not be the declared.

    Integers that pass through layers without weights can stay integers where Keras declares floats.
    """
    import tensorflow as tf

    if "float" not in tensor.dtype:
        return tensor
    sources: dict[int, keras.KerasTensor] = {}
    waiting, seen = [tensor], set[int]()
    while waiting:
        history = (reached := waiting.pop())._keras_history
        node = history.operation._inbound_nodes[history.node_index]
        if node.is_input:
            sources[id(reached)] = reached
        elif getattr(history.operation, "weights", ()):
            return tensor
        elif id(node) not in seen:
            seen.add(id(node))
            waiting += node.input_tensors
    given = list(sources.values())
    if not given or any("float" in source.dtype for source in given):
        return tensor
    specs = [tf.TensorSpec(source.shape, source.dtype) for source in given]
    try:
        traced = tf.function(keras.Function(given, tensor)).get_concrete_function(specs)
    except Exception:  # as above; the first run of the model reports it
        return tensor
    return keras.KerasTensor(tensor.shape, traced.structured_outputs.dtype.name)
