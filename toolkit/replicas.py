"""Sums over replicas, for synchronized statistics on each backend."""

from __future__ import annotations

import keras

from ..errors import UserError
from .renorm import Tensor


def all_reduce_sum(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return each tensor summed over all replicas, differentiably.

    TensorFlow sums over the replicas of the `tf.distribute` strategy in force. On JAX,
    `keras.distribution` shards one program over all devices, where a sum over the batch is the sum
    over every shard already.

    Raises:
        UserError: On PyTorch, whose replicas Keras does not distribute.
    """
    backend = keras.backend.backend()
    if backend == "jax":
        return tensors
    if backend != "tensorflow":
        raise UserError(
            "Expected the TensorFlow or JAX backend with synchronized=True. "
            f"Received: the {backend} backend. Set synchronized=False."
        )
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return tensors
    return tuple(context.all_reduce(tf.distribute.ReduceOp.SUM, list(tensors)))
