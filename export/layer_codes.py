"""The codes that stand for layers in the names of ops while a graph is traced."""

from __future__ import annotations

import re
from collections.abc import Mapping

# While a graph is traced, layer number 12 is called `k12k`: TensorFlow makes scope names unique by
# appending `_1`, which for layers called `conv` and `conv_1` could not be told from a name.
CODED_LAYER = re.compile(r"k(\d+)k(_\d+)?")


def readable_name(name: str, layer_names: Mapping[str, str]) -> str:
    """Return an op or tensor name with the names of the Keras layers put back.

    `k0k_1/k3k_1/convolution` becomes `conv1/convolution`; the outermost model's own name is
    left out. A layer's second call is `conv1#2`, its third `conv1#3`.

    Args:
        name: The name; of several, separated by `;`, each is decoded.
        layer_names: Code of a layer to the layer's path.
    """
    decoded = CODED_LAYER.sub(lambda match: layer_names.get(match[0], match[0]), name)
    return re.sub(r"(^|;)/+", r"\1", decoded)
