"""TensorFlow's own converter, set up for the small networks of the tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras


def converter_of(model: keras.Model) -> Any:
    """Return a converter of a model with one input `image`, (1, 8, 8, 1), to a .tflite file."""
    import tensorflow as tf

    function = tf.function(
        lambda image: model(image, training=False),
        input_signature=[tf.TensorSpec((1, 8, 8, 1), tf.float32, name="image")],
    )
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [function.get_concrete_function()], model
    )
    converter.experimental_lower_to_saved_model = False
    return converter
