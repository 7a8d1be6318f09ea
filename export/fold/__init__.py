"""The fold: every norm of a network moved exactly into its neighbours, and the proof of it.

A model is read into a graph (`keras_graph`); its norms become affines (`norms`) that its linear
layers can absorb (`linear`, `kinds`); ordered rules (`rules`, `passes`) move each affine until it
is absorbed; the network is rebuilt (`build`) and proved equal in float64 (`proof`).
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
from .proof import float64_twin as float64_twin
from .report import FoldReport as FoldReport
from .report import NormRecord as NormRecord
