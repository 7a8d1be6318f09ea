"""Brings a model into the form that the fold and the exporters take.

Sizes that were free are set (`sizes`), preprocessing of text is left to the app (`text`), weights
that `model.quantize` rounded become floats of the same values (`quantized`), convolutions with
channels first become ones with channels last (`channels_last`), and what stateful layers remember
becomes inputs and outputs (`states`). Each step changes the graph that
was read and says in a sentence what it did; a model that needs none of them stays the object it is.
"""

from .prepare import Prepared as Prepared
from .prepare import Shapes as Shapes
from .prepare import prepare as prepare
