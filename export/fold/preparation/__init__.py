"""Converts a model to the form that the fold and the exporters support.

Free sizes are set (`sizes`), preprocessing of text is removed (`text`), weights quantized by
`model.quantize` are converted to floats of the same values (`quantized`), channels-first layers are
converted to channels-last (`channels_last`), outputs are split into parts (`outputs`),
preprocessing of pixels becomes the first layer (`pixels`), and states of stateful layers are
converted to inputs and outputs (`states`). Each step changes the graph and describes the change in
a sentence; a model that needs none of them is returned unchanged.
"""

from .prepare import Prepared as Prepared
from .prepare import Shapes as Shapes
from .prepare import prepare as prepare
from .text import text_processing as text_processing
