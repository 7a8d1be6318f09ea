"""Codes that replace layer names in the names of ops while a graph is traced."""

from __future__ import annotations

import re
from collections.abc import Mapping

# While a graph is traced, layer number 12 is called `k12k`: TensorFlow makes scope names unique by
# appending `_1`, so `conv_1` could mean either a layer of that name or the second call of `conv`.
CODED_LAYER = re.compile(r"k(\d+)k(_\d+)?")


def readable_name(name: str, layer_names: Mapping[str, str]) -> str:
    """Return the name of an op or tensor with codes replaced by the names of Keras layers.

    `k0k_1/k3k_1/convolution` becomes `conv1/convolution`; the name of the outermost model is
    omitted. The second call of a layer is `conv1#2`, the third `conv1#3`.

    Args:
        name: The name, or several names separated by `;`.
        layer_names: Code of a layer to the layer's path.
    """
    decoded = CODED_LAYER.sub(lambda match: layer_names.get(match[0], match[0]), name)
    return re.sub(r"(^|;)/+", r"\1", decoded)
