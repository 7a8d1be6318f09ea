"""Settings of the int8 quantizers for single layers and ranges, as plain data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from ..layer_codes import readable_name
from .layer_selection import belongs, select
from .recipe import Recipe

WIDE_OPSET = 21  # the first with 16-bit QuantizeLinear

# Part of the names of products with the matrix of a formula, such as an interpolation, which
# dynamic-range and int4 files keep in floats.
IN_FLOATS = "product_in_floats"

# Part of the names of nodes that compute in floats in every .onnx file, since they jump.
JUMPS = "jump_in_floats"


@dataclasses.dataclass(frozen=True)
class QuantizerChoices:
    """Settings of an int8 file that differ from the quantizer's defaults.

    Attributes:
        keep_float: Paths of the layers that compute in float32.
        keep_int16: Paths of the layers with 16-bit activations.
        norms: Norms of inputs, which compute in float32 unless the converter merged them.
        ranges: One of `RANGES`.
        layer_names: Maps the code of a layer in the converter's names, and the name of an output,
            to the path of the layer; empty if names are readable.
        pixels: Whether the only input takes pixels, with their mean and step as quantization.
        only_int16: Whether all layers have 16-bit activations.
    """

    keep_float: tuple[str, ...] = ()
    keep_int16: tuple[str, ...] = ()
    norms: tuple[str, ...] = ()
    ranges: str = "min-max"
    layer_names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    pixels: bool = False
    only_int16: bool = False

    def kept_float(self, name: str) -> bool:
        """Return whether the operator with a name stays in float."""
        return belongs(self._readable(name), (*self.keep_float, *self.norms))

    def kept_int16(self, name: str) -> bool:
        """Return whether the operator with a name gets 16-bit activations."""
        return belongs(self._readable(name), self.keep_int16)

    def _readable(self, name: str) -> str:
        name = ";".join(self.layer_names.get(part, part) for part in name.split(";"))
        return readable_name(name, self.layer_names)


def choices_for(
    recipe: Recipe,
    layer_names: Mapping[str, str],
    outputs: Mapping[str, str],
    norms: tuple[str, ...] = (),
    *,
    nested: Mapping[str, str] | None = None,
    pixels: bool = False,
) -> QuantizerChoices | None:
    """Return the settings of a recipe; None if they are the quantizer's defaults.

    Args:
        recipe: The recipe.
        layer_names: Code of a layer in the converter's names to the path of the layer.
        outputs: Name of an output in the converter's names to the path of its layer.
        norms: Norms of inputs that compute in float32.
        nested: Name of a layer in the folded network to its path in the model.
        pixels: Whether the network takes pixels.

    Raises:
        UserError: The recipe names a layer that does not exist.
    """
    if not recipe.changes_file and not norms and not pixels:
        return None
    paths = layer_names.values()
    floats = select(recipe.keep_float, paths, "keep_float", nested)
    wide = select(recipe.keep_int16, paths, "keep_int16", nested)
    wide = tuple(path for path in wide if path not in floats)
    only_wide = bool(wide) and not norms and not pixels and wide == select(("*",), paths, "")
    names = {**layer_names, **outputs}
    return QuantizerChoices(floats, wide, norms, recipe.ranges, names, pixels, only_wide)
