"""The fold: moves every norm of a network exactly into neighbouring layers, and proves the result.

A model is read into a graph (`keras_graph`). Its norms are converted to affines (`norms`), which
linear layers can absorb (`linear`, `linear_layers`). Ordered rules (`rules`, `passes`) move each
affine until it is absorbed. The network is rebuilt (`build`) and compared with the original in
float64 (`proof`).
"""

from .affine import Affine as Affine
from .fold import FoldResult as FoldResult
from .fold import Inspection as Inspection
from .fold import fold as fold
from .fold import inspect as inspect
from .input_affines import affines_of_inputs as affines_of_inputs
from .input_values import InputValues as InputValues
from .input_values import check_values as check_values
from .input_values import values_of_inputs as values_of_inputs
from .keras_graph import call_structure as call_structure
from .norms import register_affine as register_affine
from .preparation import Prepared as Prepared
from .preparation import Shapes as Shapes
from .preparation import prepare as prepare
from .proof import Proof as Proof
from .proof import float32_twin as float32_twin
from .proof import float64_twin as float64_twin
from .report import FoldReport as FoldReport
from .report import NormRecord as NormRecord
