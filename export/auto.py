"""Files of the precision `auto`: made by several recipes and measured on held-out samples."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import keras
import numpy as np

from ..artifacts.graphs import read_graph
from ..artifacts.manifest import Artifact
from ..artifacts.plain_json import plain
from ..artifacts.samples import SampleSet
from ..errors import UserError
from ..files import write_bytes, write_text
from ..reference.network import opaque_layers
from ..reference.quantization_costs import OUTLIERS, UNLIKE_CHANNELS, LayerCost, measure_costs
from . import golden_set as golden
from .host import run_timed
from .network.write import build_network
from .progress import Steps
from .quantization.budget import Budget
from .quantization.equalization import Equalizer
from .quantization.pareto import picture
from .quantization.recipe import Recipe
from .quantization.search import CostlyLayer, Search, Trial
from .quantization.weight_rounding import with_rounded_weights
from .signature import Signature
from .variants import Variant, mean_ratio

_MIN_SAMPLES = 8
_HELD_OUT_EVERY = 4  # one in four samples is held out

Convert = Callable[[Variant, Recipe, SampleSet, Path], Artifact]


class RecipeNetworks:
    """The network of each recipe, built once."""

    def __init__(
        self, folded: Variant, original: Variant | None, signature: Signature, samples: SampleSet
    ) -> None:
        """Create the cache.

        Args:
            folded: The folded network.
            original: The trained network; None if it has no norms.
            signature: Its inputs and outputs.
            samples: Real samples that determine scales and rounding.
        """
        self._folded, self._original = folded, original
        self._inputs = [samples.arrays[tensor.name] for tensor in signature.inputs]
        self._made: dict[Recipe, Variant | None] = {}
        self._equalizers: dict[bool, Equalizer] = {}
        self._models: dict[tuple[float, bool], keras.Model | None] = {}

    def _equalizer(self, clipped: bool) -> Equalizer:
        if clipped not in self._equalizers:
            equalizer = Equalizer(self._folded.model, self._inputs, clipped=clipped)
            self._equalizers[clipped] = equalizer
        return self._equalizers[clipped]

    def get(self, recipe: Recipe, name: str) -> Variant | None:
        """Return the network of a recipe; None if it cannot be built."""
        key = dataclasses.replace(recipe, ranges="min-max", keep_int16=())
        if key not in self._made:
            self._made[key] = self._variant(key, name)
        return self._made[key]

    def _equalized(self, strength: float | None, clipped: bool) -> keras.Model | None:
        if strength is None:
            return self._folded.model
        key = strength, clipped
        if key not in self._models:
            equalizer = self._equalizer(clipped)
            self._models[key] = equalizer.equalized(strength) if equalizer.possible else None
        return self._models[key]

    def _variant(self, recipe: Recipe, name: str) -> Variant | None:
        if not recipe.fold:
            return self._original
        model = self._equalized(recipe.equalize, recipe.across_relu6)
        if model is None:
            return None
        if not recipe.changes_weights:
            if recipe.equalize is None:
                return self._folded
            return dataclasses.replace(self._folded, name=name, model=model)
        rounded = with_rounded_weights(
            model,
            self._inputs,
            adaptive=recipe.rounding == "adaptive",
            correct_bias=recipe.bias_correction,
            statistics=recipe.statistics,
            exclude=[path.rpartition("/")[2] for path in recipe.keep_float],
        )
        return dataclasses.replace(self._folded, name=name, model=rounded)


@dataclasses.dataclass(frozen=True)
class AutoFile:
    """The search for one file.

    Attributes:
        format_name: Its format.
        folded: The folded network.
        original: The trained network; None if it has no norms.
        signature: Inputs and outputs.
        samples: Real samples; a quarter of them is held out.
        convert: Writes a file from a network, a recipe and samples into a folder.
        budget: Limits on its size, latency and noise.
        base: The recipe to start from.
        wide: Whether the format supports 16-bit activations, which are tried before float.
        step: Reports every stage.
    """

    format_name: str
    folded: Variant
    original: Variant | None
    signature: Signature
    samples: SampleSet
    convert: Convert
    budget: Budget
    base: Recipe
    wide: bool
    step: Steps

    def __post_init__(self) -> None:
        """Check the number of samples.

        Raises:
            UserError: There are too few to hold some out.
        """
        if self.samples.count < _MIN_SAMPLES:
            raise UserError(
                f"auto measures files on held-out samples, so it needs at least {_MIN_SAMPLES} "
                f"real samples. Received: {self.samples.count}. Give more (calibration=…, "
                "--calibration DATA), or export int8."
            )

    def write(self, folder: Path) -> tuple[Artifact, Variant]:
        """Search, and write the chosen file, its recipe and a plot of all trials into a folder.

        Raises:
            UserError: Even a plain int8 file cannot be made.
        """
        run = _Run(self, folder / f".auto-{self.format_name}")
        run.place.mkdir()
        search = Search(
            run.attempt,
            run.costly_layers,
            self.budget,
            wide=self.wide,
            base=self.base,
        )
        found = search.run()
        artifact, variant = run.files[found.chosen.recipe]
        if found.chosen is found.trials[0]:  # exactly the plain int8 file, so never worse
            artifact = self.convert(variant, found.chosen.recipe, self.samples, folder)
        else:
            os.replace(run.folder_of(found.chosen.recipe) / artifact.file, folder / artifact.file)
        shutil.rmtree(run.place)
        record = {
            "recipe": found.chosen.recipe.to_json(),
            "sentence": found.sentence,
            "trials": [trial.to_json() for trial in found.trials],
        }
        text = json.dumps(plain(record), indent=2) + "\n"
        write_text(folder / f"{artifact.file}.recipe.json", text)
        write_bytes(folder / f"{artifact.file}.svg", picture(found, artifact.file))
        return dataclasses.replace(artifact, notes=(*artifact.notes, found.sentence)), variant


class _Run:
    """The trials of one search."""

    def __init__(self, auto: AutoFile, place: Path) -> None:
        self.auto, self.place = auto, place
        self.files: dict[Recipe, tuple[Artifact, Variant]] = {}
        index = np.arange(auto.samples.count)
        held = index % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1
        self.calibration = _chosen(auto.samples, ~held)
        self.held_out = _chosen(auto.samples, held)
        self.networks = RecipeNetworks(auto.folded, auto.original, auto.signature, self.calibration)
        self.trials: list[Trial] = []
        self._costly: dict[Recipe, list[CostlyLayer]] = {}
        outputs = golden.evaluate(auto.folded.model, auto.signature, self.held_out.arrays)
        self._truth = {name: array.astype(np.float64) for name, array in outputs.items()}

    def folder_of(self, recipe: Recipe) -> Path:
        return self.place / str(list(self.files).index(recipe))

    def attempt(self, recipe: Recipe) -> Trial | None:
        """Make and measure a file; return None if it cannot be made."""
        variant = self.networks.get(recipe, f"auto-{self.auto.format_name}-{len(self.files)}")
        if variant is None:
            return None
        folder = self.place / str(len(self.files))
        folder.mkdir()
        try:
            artifact = self.auto.convert(variant, recipe, self.calibration, folder)
        except UserError:
            shutil.rmtree(folder)
            if not self.files:
                raise
            return None
        self.files[recipe] = artifact, variant
        with self.auto.step(artifact.file, "judge"):
            outputs, seconds = run_timed(artifact, folder, self.held_out.arrays)
        trial = Trial(
            recipe,
            artifact.bytes,
            1000 * seconds,
            mean_ratio(self._truth, outputs),
            self._decisions(outputs),
            self._accuracy(outputs),
        )
        self.trials.append(trial)
        return trial

    @functools.cached_property
    def _scores(self) -> str | None:
        """Name of the output of class scores; None unless there is exactly one.

        Without labels, the scores must be probabilities.
        """
        rows = [name for name, t in self._truth.items() if t.ndim == 2 and t.shape[1] > 1]
        if len(rows) != 1:
            return None
        sums = self._truth[rows[0]].sum(axis=1)
        shares = np.allclose(sums, 1, atol=1e-3) and (self._truth[rows[0]] >= 0).all()
        return rows[0] if shares or self.held_out.labels is not None else None

    def _decisions(self, outputs: Mapping[str, np.ndarray]) -> float | None:
        name = self._scores
        if name is None:
            return None
        return float(np.mean(outputs[name].argmax(axis=1) == self._truth[name].argmax(axis=1)))

    def _accuracy(self, outputs: Mapping[str, np.ndarray]) -> float | None:
        name, labels = self._scores, self.held_out.labels
        if name is None or labels is None or not (labels >= 0).any():
            return None
        known = labels >= 0
        return float(np.mean(outputs[name].argmax(axis=1)[known] == labels[known]))

    def costly_layers(self) -> list[CostlyLayer]:
        """Return the layers of the best file so far, the most expensive first."""
        best = max(self.trials, key=lambda trial: trial.snr_db).recipe
        if best not in self._costly:
            self._costly[best] = self._costly_layers_of(best)
        return self._costly[best]

    def _costly_layers_of(self, recipe: Recipe) -> list[CostlyLayer]:
        """Return the layers of one file, the most expensive first; empty if it is not known."""
        artifact, variant = self.files[recipe]
        signature = self.auto.signature
        network = build_network(variant.model).named(
            [tensor.name for tensor in signature.inputs],
            [tensor.name for tensor in signature.outputs],
        )
        if opaque_layers(network):
            return []
        path = self.folder_of(recipe) / artifact.file
        graph = read_graph(path, artifact.format).in_order(*artifact.names)
        with self.auto.step(artifact.file, "explain"):
            costs = measure_costs(network, graph, self.calibration.take(16).arrays)
        return [
            CostlyLayer(entry.layer, costs.decibels(entry.power), *_why(entry))
            for entry in costs.layers
            if not entry.layer.startswith("input ")
        ]


def _why(entry: LayerCost) -> tuple[str, str]:
    """Return why a layer has its cost, and the cause that the search knows a change for."""
    if entry.worst == "clipping":
        return f"{entry.clipped:.2g} % of its values are clipped", "ranges"
    if entry.worst == "weights":
        return "its weights have too few bits", "weights"
    if entry.channels > UNLIKE_CHANNELS:
        return f"its channels differ by {entry.channels:.0f}x", "channels"
    if entry.outliers > OUTLIERS:
        return f"its greatest value is {entry.outliers:.1f} times the usual ones", "ranges"
    return entry.too_coarse, ""


def _chosen(samples: SampleSet, index: np.ndarray) -> SampleSet:
    labels = None if samples.labels is None else samples.labels[index]
    arrays = {name: array[index] for name, array in samples.arrays.items()}
    return dataclasses.replace(samples, arrays=arrays, labels=labels)
