"""Matches the inputs and outputs of a file to the model's: by name, by order, else by values.

A common name decides. Without one, tensors of fitting shapes are matched in order; if the outputs
then differ from the model's, other orders are tried on a few samples. Axes may be in another order,
as in files with channels first. The report states every assumption.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ...artifacts.golden_set import Arrays
from ...artifacts.graphs.base import ArtifactGraph
from ...artifacts.manifest import Artifact, TensorSpec
from ...errors import UserError
from ...runtimes import HOSTS, Target, make_runner
from ...runtimes.base import ArtifactError, Runner, TensorInfo
from ...runtimes.session import Session

# Outputs with a smaller error, relative to the signal, are certainly the model's.
_CERTAIN = 0.05
_SAMPLES, _MOST_TRIED = 4, 64

Axes = tuple[int, ...] | None


BY_NAME = "by name"


class UnlikeInterfaceError(ArtifactError):
    """The tensors of a file do not fit the model's."""


@dataclass(frozen=True)
class Pair:
    """A tensor of the model and the matching one of the file.

    Attributes:
        spec: The model's.
        info: The file's.
        axes: Order of the model's axes in the file; None if it is the same.
        how: Ends a sentence: how it was chosen.
    """

    spec: TensorSpec
    info: TensorInfo
    axes: Axes
    how: str

    @property
    def filed(self) -> TensorSpec:
        """The tensor as the manifest lists it."""
        return TensorSpec(
            self.info.name,
            tuple(None if size < 0 else size for size in self.info.shape),
            str(self.info.dtype),
            keras_name=self.spec.name,
            scale=self.info.scale,
            zero_point=self.info.zero_point,
            axes=self.axes,
        )

    @property
    def same(self) -> bool:
        """Whether the file's tensor has the model's name, axes and numbers."""
        named = self.how == BY_NAME and self.info.name == self.spec.name
        return named and self.axes is None and self.info.scale is None

    def sentence(self, what: str) -> str:
        """Describe the assumption."""
        axes = ""
        if self.axes is not None:
            fed = "what it is fed" if what == "input" else "the model's to compare them"
            axes = f", with axes in another order: transpose {fed} by {self.axes}"
        steps = "" if self.info.scale is None else f", in steps of {self.info.scale:.4g}"
        return f"{what} '{self.spec.name}' is '{self.info.name}', {self.how}{axes}{steps}"


@dataclass(frozen=True)
class Interface:
    """How to run a file on the model's inputs and read its outputs.

    Attributes:
        inputs: In the order of the model.
        outputs: In the order of the model.
    """

    inputs: tuple[Pair, ...]
    outputs: tuple[Pair, ...]

    @property
    def sentences(self) -> tuple[str, ...]:
        """The assumptions; tensors with the model's names, axes and numbers need none."""
        return (
            *(pair.sentence("input") for pair in self.inputs if not pair.same),
            *(pair.sentence("output") for pair in self.outputs if not pair.same),
        )


def match_interface(
    path: Path,
    artifact: Artifact,
    graph: ArtifactGraph,
    inputs: Arrays,
    truth: Arrays,
    wanted: Mapping[str, str],
) -> Interface:
    """Match the inputs and outputs of a file to the model's.

    Args:
        path: The file.
        artifact: The file, with the inputs and outputs of the model.
        graph: The file's graph.
        inputs: Samples by the model's input names.
        truth: The model's outputs for them.
        wanted: Names of the model's inputs and outputs to names of the file's, given by the user.

    Raises:
        UserError: A name given by the user is not in the file.
        UnlikeInterfaceError: No tensor of the file fits one of the model.
        ArtifactError: The file cannot be run.
    """
    few = min(_SAMPLES, len(next(iter(inputs.values()))))
    samples = {name: array[:few] for name, array in inputs.items()}
    exact = {name: array[:few] for name, array in truth.items()}
    with make_runner(Target(HOSTS[artifact.format]), path) as runner:
        sides = [
            [_quantized(info, graph) for info in infos] for infos in (runner.inputs, runner.outputs)
        ]
        _demand_known(path, wanted, [info.name for side in sides for info in side])
        names = _public_names(graph)
        best: tuple[float, Interface] | None = None
        for pairs in _assignments(artifact.inputs, sides[0], names, wanted, path):
            given = _run(runner, artifact, pairs, sides[1], samples)
            error, outputs = _read(artifact.outputs, sides[1], given, exact, names, wanted, path)
            if best is None or error < best[0] / 2:
                how = "by its values" if best is not None else ""
                inputs_ = tuple(
                    replace(p, how=how) if how and p.how == "by order" else p for p in pairs
                )
                best = error, Interface(inputs_, outputs)
            if error < _CERTAIN:
                break
    assert best is not None
    return best[1]


def _demand_known(path: Path, wanted: Mapping[str, str], known: Sequence[str]) -> None:
    for name in wanted.values():
        if name not in known:
            raise UserError(f"{path.name} has no tensor '{name}'. It has {', '.join(known)}.")


def _quantized(info: TensorInfo, graph: ArtifactGraph) -> TensorInfo:
    """Return a tensor with its scale in the file, where the runtime does not provide it."""
    tensor = next((t for t in graph.tensors.values() if t.name == info.name), None)
    if info.scale is not None or info.dtype.kind == "f" or tensor is None:
        return info
    steps = tensor.quantization
    if steps is None or steps.scales.size != 1:
        return info
    return replace(info, scale=float(steps.scales[0]), zero_point=int(steps.zero_points[0]))


def _public_names(graph: ArtifactGraph) -> dict[str, str]:
    """Return the signature's name of each tensor, by the tensor's own name."""
    return {graph.tensors[key].name: name for key, name in graph.signature.items()}


def other_signatures(graph: ArtifactGraph) -> tuple[str, ...]:
    """Return a sentence if a file has signatures besides the one that is run."""
    if len(graph.signatures) < 2:
        return ()
    first, *others = graph.signatures
    listed = ", ".join(f"'{name}'" for name in others)
    return (
        f"signature '{first}' is run, the first of the file, and not {listed}: to check another "
        f"one, convert it alone (from_saved_model(…, signature_keys=['{others[0]}']))",
    )


def _plain(name: str) -> str:
    """Return a name without the additions of converters."""
    name = re.sub(r"^(serving_default_|StatefulPartitionedCall/)", "", name)
    return re.sub(r":\d+$", "", name).lower()


def _assignments(
    specs: Sequence[TensorSpec],
    infos: Sequence[TensorInfo],
    names: Mapping[str, str],
    wanted: Mapping[str, str],
    path: Path,
) -> Iterator[tuple[Pair, ...]]:
    """Yield ways to match tensors of a file to those of the model, the most likely first."""
    fixed = _by_name(specs, infos, names, wanted)
    taken = {info.name for info, _ in fixed.values()}
    rest = [spec for spec in specs if spec.name not in fixed]
    free = [info for info in infos if info.name not in taken]
    if len(specs) != len(infos) and len(rest) > len(free):
        raise UnlikeInterfaceError(_unlike(path, specs, infos))
    found = 0
    for order in itertools.permutations(free, len(rest)):
        chosen = {**fixed, **{s.name: (i, "by order") for s, i in zip(rest, order, strict=True)}}
        options = [
            [Pair(spec, info, axes, how) for axes in _axes(spec, info)]
            for spec in specs
            for info, how in [chosen[spec.name]]
        ]
        for pairs in itertools.product(*options):
            found += 1
            yield pairs
            if found == _MOST_TRIED:
                return
    if not found:
        raise UnlikeInterfaceError(_unlike(path, specs, infos))


def _by_name(
    specs: Sequence[TensorSpec],
    infos: Sequence[TensorInfo],
    names: Mapping[str, str],
    wanted: Mapping[str, str],
) -> dict[str, tuple[TensorInfo, str]]:
    """Return the tensors of the file whose names decide, by the model's names."""
    found: dict[str, tuple[TensorInfo, str]] = {}
    exact = {info.name: info for info in infos}
    for spec in specs:
        if spec.name in wanted:
            if wanted[spec.name] in exact:
                found[spec.name] = exact[wanted[spec.name]], "as asked for"
        elif spec.name in exact:
            found[spec.name] = exact[spec.name], BY_NAME
        else:
            alike = [
                info
                for info in infos
                if _plain(spec.name) in (_plain(info.name), _plain(names.get(info.name, info.name)))
            ]
            if len(alike) == 1:
                found[spec.name] = alike[0], BY_NAME
    if len({info.name for info, _ in found.values()}) < len(found):
        return {name: pair for name, pair in found.items() if pair[1] == "as asked for"}
    return found


def _axes(spec: TensorSpec, info: TensorInfo) -> list[Axes]:
    """Return the orders of the model's axes that fit the file's shape, the most likely first."""
    count = len(spec.shape)
    if len(info.shape) != count:
        return []

    def fits(order: Sequence[int]) -> bool:
        return all(
            place == 0 or info.shape[place] in (-1, spec.shape[axis]) or spec.shape[axis] is None
            for place, axis in enumerate(order)
        )

    same = tuple(range(count))
    first = (0, count - 1, *range(1, count - 1))
    orders = list(dict.fromkeys([same, first] if count > 2 else [same]))
    usual = [order for order in orders if fits(order)]
    others = [
        (0, *order)
        for order in itertools.permutations(range(1, count))
        if count <= 4 and (0, *order) not in orders and fits((0, *order))
    ]
    return [None if order == same else order for order in (*usual, *others)]


def _run(
    runner: Runner,
    artifact: Artifact,
    pairs: Sequence[Pair],
    outputs: Sequence[TensorInfo],
    samples: Arrays,
) -> dict[str, np.ndarray]:
    """Return the file's outputs by its own names, as real numbers."""
    raw = tuple(
        TensorSpec(o.name, (None,), str(o.dtype), scale=o.scale, zero_point=o.zero_point)
        for o in outputs
    )
    bound = replace(artifact, inputs=tuple(pair.filed for pair in pairs), outputs=raw)
    return Session(runner, bound).run(samples)


def _read(
    specs: Sequence[TensorSpec],
    infos: Sequence[TensorInfo],
    given: Mapping[str, np.ndarray],
    truth: Arrays,
    names: Mapping[str, str],
    wanted: Mapping[str, str],
    path: Path,
) -> tuple[float, tuple[Pair, ...]]:
    """Return the outputs that are nearest to the model's, and their errors."""
    best: tuple[float, tuple[Pair, ...]] | None = None
    for pairs in _assignments(specs, infos, names, wanted, path):
        error = max(_distance(pair, given, truth) for pair in pairs)
        if best is None or error < best[0] / 2:
            if best is not None:
                pairs = tuple(
                    replace(p, how="by its values") if p.how == "by order" else p for p in pairs
                )
            best = error, pairs
        if error < _CERTAIN:
            break
    assert best is not None
    return best


def _distance(pair: Pair, given: Mapping[str, np.ndarray], truth: Arrays) -> float:
    """Return the error of an output over the signal; infinite for another shape."""
    actual, exact = given[pair.info.name].astype(np.float64), truth[pair.spec.name]
    if pair.axes is not None:
        actual = np.transpose(actual, np.argsort(pair.axes))
    if actual.shape != exact.shape:
        return float("inf")
    usable = np.isfinite(actual) & np.isfinite(exact)
    signal = float(np.linalg.norm(exact[usable]))
    error = float(np.linalg.norm((actual - exact)[usable]))
    return error / signal if signal else error


def _unlike(path: Path, specs: Sequence[TensorSpec], infos: Sequence[TensorInfo]) -> str:
    """Return an error message: a file's tensors do not fit the model's."""
    has = ", ".join(f"'{info.name}' {info.shape}" for info in infos)
    needs = ", ".join(f"'{spec.name}' {spec.shape}" for spec in specs)
    return f"{path.name} has {has}, of which none can be the model's {needs}"
