"""The backend of Keras that folds and exports."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from ...errors import UserError


def require_tensorflow(what: str) -> None:
    """Raise an error on another backend.

    Args:
        what: The action that needs TensorFlow.

    Raises:
        UserError: Keras runs on another backend; the message says how to go on.
    """
    backend = keras.config.backend()
    if backend == "tensorflow":
        return
    installed = importlib.util.find_spec("tensorflow") is not None
    raise UserError(
        f"{what} needs the TensorFlow backend of Keras. Received: {backend!r}. Save the model with "
        f"model.save(...){'' if installed else ', install tensorflow'}, and load it in a process "
        "with KERAS_BACKEND=tensorflow."
    )


def view_of(variable: Any) -> np.ndarray:
    """Return a Keras variable as a read-only array, without a copy.

    It keeps its values if the variable changes later.
    """
    import tensorflow as tf

    return np.asarray(tf.convert_to_tensor(variable.value))


def bias_axis(shape: Sequence[int | None], size: int) -> int | None:
    """Return the axis, from the end, to which Keras adds a vector that looks like a bias.

    On TensorFlow, `keras.ops.add` calls `tf.nn.bias_add` for a vector as long as the last axis or
    axis 1, whatever the vector's shape: of an addition to another axis, it computes something else.

    Args:
        shape: Shape of the value that the vector is added to, with its batch.
        size: Length of the vector.

    Returns:
        The axis; None if Keras adds the vector along its own axis.
    """
    axes = [axis for axis in (-1, 1 - len(shape)) if size > 1 and shape[axis] == size]
    return axes[0] if axes and len(shape) > 1 else None
