"""Inserts preprocessing before a network, which then takes raw pixels.

The network gets an input of unsigned 8-bit integers, a cast, and `(pixel - mean) * scale` as a norm
of this input. The fold treats it as any other norm: the scale goes into the first layer, and so
does the mean, unless that layer pads with zeros: a zero of the padding is a pixel of the mean.
"""

from __future__ import annotations

import keras
import numpy as np

from ....artifacts.images import Preprocessing
from ....errors import UserError
from ..graph import Call, Graph, Kept, Source, Value
from ..keras_graph import operation_of

DTYPE = "uint8"
NAME = "preprocessing"


def take_pixels(graph: Graph, preprocessing: Preprocessing) -> list[str]:
    """Insert preprocessing after the input that takes images, in place.

    Args:
        graph: The network.
        preprocessing: The conversion of pixels to inputs of the network.

    Returns:
        One sentence about the change.

    Raises:
        UserError: It is not clear which input takes pixels, or the numbers do not fit its channels.
    """
    old = _image(graph)
    mean, scale = _numbers(preprocessing, old)
    name = old.producer.name
    tensor = keras.KerasTensor(old.shape, DTYPE, name=name)
    pixels = graph.add(Call(Source(tensor, name), []), [(old.shape, DTYPE)]).output
    cast = Kept(operation_of(keras.ops.cast(tensor, old.dtype)), graph.unique_name("pixels"))
    value = graph.add(Call(cast, [pixels]), [(old.shape, old.dtype)]).output
    layer_name = graph.unique_name(NAME)
    # A Rescaling keeps Python numbers, so that the float64 network has them unrounded.
    layer = keras.layers.Rescaling(scale, _offset(mean, scale), name=layer_name)
    call = graph.add(Call(Kept(layer, layer_name), [value]), [(old.shape, old.dtype)])
    graph.inputs = [pixels if given is old else given for given in graph.inputs]
    graph.replace_value(old, call.output)
    return [
        f"input {name!r} takes raw pixels, {DTYPE}: (pixel - mean) * scale is computed in the files"
    ]


def _image(graph: Graph) -> Value:
    """Return the input that takes pixels: the only one of floats, or the only image of them.

    Raises:
        UserError: There is none, or more than one.
    """
    floats = [v for v in graph.inputs if v.dtype.startswith(("float", "bfloat")) and v.rank > 1]
    images = [v for v in floats if v.rank == 4]
    for found in (floats, images):
        if len(found) == 1:
            return found[0]
    given = ", ".join(f"{v.producer.name} ({v.dtype}, {list(v.shape)})" for v in graph.inputs)
    raise UserError(
        "Preprocessing in the model needs one input of floating point for the pixels. Received: "
        f"{given}. Put keras.layers.Rescaling into the model instead."
    )


def _numbers(
    preprocessing: Preprocessing, image: Value
) -> tuple[float | list[float], float | list[float]]:
    """Return mean and scale in the form that Keras takes.

    Raises:
        UserError: Their number is not that of the channels, or a scale is 0.
    """
    channels = image.shape[-1]
    found: list[float | list[float]] = []
    for name in ("mean", "scale"):
        values = np.ravel(np.asarray(getattr(preprocessing, name), np.float64))
        if values.size not in (1, channels) or not np.isfinite(values).all():
            raise UserError(
                f"The {name} of the preprocessing must be one number or one for each of "
                f"{channels} channels. Received: {', '.join(map(str, values))}."
            )
        if name == "scale" and not values.all():
            raise UserError(
                "A scale of 0 makes all pixels equal. Give the scale that the network was trained "
                "with: 0.00392157 for 0 to 1, 0.00784314 with the mean 127.5 for -1 to 1."
            )
        found.append(float(values[0]) if values.size == 1 else values.tolist())
    return found[0], found[1]


def _offset(mean: float | list[float], scale: float | list[float]) -> float | list[float]:
    product = -np.asarray(mean) * np.asarray(scale)
    return float(product) if product.ndim == 0 else product.tolist()
