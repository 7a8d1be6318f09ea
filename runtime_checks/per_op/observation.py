"""Runs a file and returns every tensor, on the target or on a substitute.

Some runtimes expose no tensors, and devices return only outputs. Another runtime of this machine is
then used instead. For integer files the rounding matters, so the substitute is one whose outputs
equal the target's to the bit. If there is none, the target runs a copy of a .tflite file that
returns all tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ...artifacts.golden_set import GoldenSet
from ...artifacts.graphs.base import ArtifactGraph
from ...artifacts.manifest import Artifact
from ...artifacts.precisions import Arithmetic, precision_named
from ...artifacts.sample_kinds import BORDER, EXTREME, NONFINITE, RANDOM, REAL, SEARCH
from ...errors import UserError
from ...locks import temporary_folder
from ...runtimes import LOCAL, RUNTIMES, Target, make_runner, runner_class, usable_here
from ...runtimes.base import TensorReader
from ...runtimes.run import TargetRun, run_target
from ...runtimes.session import Session
from .exposed_copy import exposed_tensors, write_exposed

# Runs a file on a target. Args: the file, its entry, the inputs, the target.
RunFile = Callable[[Path, Artifact, Mapping[str, np.ndarray], Target], TargetRun]

# Substitutes that expose the tensors of a file, the preferred one first.
_STAND_INS = {
    "tflite": ("litert", "litert+reference", "litert+builtin"),
    "onnx": ("onnxruntime+disabled", "onnxruntime"),
}

# Number of samples; a walk of MobileNetV2 takes 0.15 s for each.
OBSERVED_SAMPLES = 4

# Kinds of samples, the most informative first; denormal ones only if they failed.
_OBSERVED = (REAL, BORDER, EXTREME, RANDOM, SEARCH)


@dataclass(frozen=True)
class Observation:
    """The tensors of a file on a few samples.

    Attributes:
        on: The target that ran it.
        remark: Ends a statement: why another target was used; else empty.
        index: (P,) places of the samples in the golden set.
        inputs: Keras input name to (P, …) floats.
        tensors: The file's key to (P, …).
        own_rule: Whether the target's integers follow no known rule, so that it had to be the one
            that ran, and its operators may round by another rule.
        half: Whether the target itself ran a float16 file, which it may compute in half precision.
    """

    on: Target
    remark: str
    index: np.ndarray
    inputs: Mapping[str, np.ndarray] = field(repr=False)
    tensors: Mapping[str, np.ndarray] = field(repr=False)
    own_rule: bool = False
    half: bool = False


def observe(
    path: Path,
    artifact: Artifact,
    graph: ArtifactGraph,
    golden: GoldenSet,
    target: Target,
    given: Mapping[str, np.ndarray],
    run: RunFile,
    *,
    passed: bool,
    threads: int = 1,
    first: Sequence[int] = (),
) -> Observation:
    """Run a file on a few samples and keep every tensor.

    Args:
        path: The file.
        artifact: The manifest's entry of the file.
        graph: The file's graph.
        golden: The golden set to take samples from.
        target: The target to run it on.
        given: Keras output name to (N, …) outputs of the target for the golden inputs.
        run: Runs another file on the target.
        passed: Whether the target's outputs are right.
        threads: Threads that the runtime may use.
        first: Samples to use before others: those that failed.

    Raises:
        ArtifactError: No runtime that exposes tensors can run the file.
    """
    index = _choose(golden, first, artifact.precision)
    inputs = {name: array[index] for name, array in golden.inputs.items()}
    on, remark = target, ""
    if not _shows_tensors(target):
        stand_in, remark = _stand_in(path, artifact, golden, target, given, passed=passed)
        if stand_in is None:
            known = {name: array[index] for name, array in given.items()}
            copied = _by_copy(path, artifact, graph, target, inputs, known, run)
            if copied is not None:
                return replace(copied, index=index)
            stand_in = next(_candidates(artifact, target))
            remark = f"on {stand_in}, {_why(target)}; its outputs differ from those of {target}"
        on = stand_in
    runner = make_runner(on, path, threads=threads)
    assert isinstance(runner, TensorReader)
    with runner:
        session = Session(runner, artifact)
        size = session.batch_size
        runs = [
            run
            for start in range(0, len(index), size)
            for run in _by_sample(runner.infer_all(session.batch(inputs, start)), size)
        ][: len(index)]
    tensors = {
        key: np.stack([run[key] for run in runs])
        for key in runs[0]
        if all(key in run and run[key].shape == runs[0][key].shape for run in runs)
    }
    return Observation(on, remark, index, inputs, tensors)


def only_operators_tell(artifact: Artifact, target: Target) -> bool:
    """Return whether right outputs of a right file say too little about a target.

    A float16 file may be computed in half precision. Limits on outputs allow for that, and a wrong
    operator may change them less.
    """
    half = _arithmetic(artifact) is Arithmetic.FLOAT16 and artifact.format == "tflite"
    return half and not _shows_tensors(target) and RUNTIMES[target.runtime].follows_rules


def _by_sample(tensors: Mapping[str, np.ndarray], size: int) -> list[dict[str, np.ndarray]]:
    """Return a run's tensors sample by sample; of a larger batch, those with an axis of samples."""
    if size == 1:
        return [dict(tensors)]
    cut = {key: array for key, array in tensors.items() if array.shape[:1] == (size,)}
    return [{key: array[i : i + 1] for key, array in cut.items()} for i in range(size)]


def _shows_tensors(target: Target) -> bool:
    return target.device == LOCAL and issubclass(runner_class(target.runtime), TensorReader)


def _why(target: Target) -> str:
    """Return a clause: why another target is used."""
    missing = "" if target.device == LOCAL and not _shows_tensors(target) else " here"
    return f"since {target} exposes no tensors{missing}"


def _stand_in(
    path: Path,
    artifact: Artifact,
    golden: GoldenSet,
    target: Target,
    given: Mapping[str, np.ndarray],
    *,
    passed: bool,
) -> tuple[Target | None, str]:
    """Return the substitute for a target, and a remark on it.

    None if the target itself had better run a copy: no substitute has the same outputs. A compiler
    that joins operators, such as OpenVINO, rounds otherwise in a copy, which is no fault.
    """
    candidates = list(dict.fromkeys(_candidates(artifact, target)))
    compiles = not RUNTIMES[target.runtime].follows_rules
    if not _bits_matter(artifact) or (compiles and passed):
        return candidates[0], f"on {candidates[0]}, {_why(target)}"
    finite = golden.kind != NONFINITE  # of the others integers say nothing
    inputs = {name: array[finite] for name, array in golden.inputs.items()}
    for candidate in candidates:
        outputs = run_target(path, artifact, inputs, candidate).outputs
        if outputs.keys() == given.keys() and all(
            np.array_equal(outputs[name], given[name][finite]) for name in given
        ):
            same = f"whose outputs on {int(finite.sum())} samples are the same bits"
            return candidate, f"on {candidate}, {same}, {_why(target)}"
    return None, ""


def _bits_matter(artifact: Artifact) -> bool:
    """Return whether outputs with other bits than a substitute's say that it computes otherwise.

    Not where a target quantizes at run time, which the bounds of operators do not allow for.
    """
    if _of_integers(artifact):
        return True
    return _arithmetic(artifact) is not Arithmetic.HYBRID and artifact.format == "tflite"


def _arithmetic(artifact: Artifact) -> Arithmetic:
    return precision_named(artifact.precision).arithmetic


def _of_integers(artifact: Artifact) -> bool:
    return _arithmetic(artifact) is Arithmetic.INTEGER


def _by_copy(
    path: Path,
    artifact: Artifact,
    graph: ArtifactGraph,
    target: Target,
    inputs: Mapping[str, np.ndarray],
    given: Mapping[str, np.ndarray],
    run: RunFile,
) -> Observation | None:
    """Run a copy that returns all tensors on the target itself.

    Returns:
        The tensors; None if the target cannot run the copy, computes in floats, or gives the
        outputs of the file other bits then.
    """
    integers = _of_integers(artifact)
    if artifact.format != "tflite" or (integers and not RUNTIMES[target.runtime].follows_rules):
        return None
    batch = artifact.inputs[0].shape[0] or 1
    with temporary_folder() as folder:
        copied = write_exposed(path, artifact, graph, batch, folder)
        try:
            found = run(folder / copied.file, copied, inputs, target)
        except UserError:
            return None
    if found.problem or any(
        name not in found.outputs or not np.array_equal(found.outputs[name], known, equal_nan=True)
        for name, known in given.items()
    ):
        return None
    tensors = exposed_tensors(found.outputs, copied, artifact, graph)
    remark = f"on {target}, from a copy of the file that returns all tensors"
    half = _arithmetic(artifact) is Arithmetic.FLOAT16
    return Observation(target, remark, np.arange(0), inputs, tensors, integers, half)


def _candidates(artifact: Artifact, target: Target) -> Iterator[Target]:
    """Yield possible substitutes: the same runtime on this machine first."""
    if target.device != LOCAL and RUNTIMES[target.runtime].home == LOCAL:
        here = Target(target.runtime, target.variant)
        if usable_here(target.runtime) and _shows_tensors(here):
            yield here
    yield from (Target.parse(text) for text in _STAND_INS[artifact.format])


def _choose(golden: GoldenSet, first: Sequence[int], precision: str) -> np.ndarray:
    """Return the samples to use: the given ones, then every kind in turn.

    Samples with NaN or infinity are excluded, since their results say nothing about an op; for a
    file of integers also those for which the trained model returns NaN or infinity.
    """
    usable = golden.kind != NONFINITE
    if not precision_named(precision).takes_nonfinite:
        for values in golden.reference.values():
            usable &= np.isfinite(values).reshape(len(usable), -1).all(axis=1)
    order = [i for i in dict.fromkeys(int(index) for index in first) if usable[i]]
    kinds = [kind for kind in _OBSERVED if kind in golden.kind]
    kinds += sorted(set(golden.kind[usable]) - set(kinds))
    by_kind = {kind: list(np.flatnonzero(golden.kind == kind)) for kind in kinds}
    while len(order) < min(OBSERVED_SAMPLES, int(usable.sum())):
        for places in by_kind.values():
            while places and int(places[0]) in order:
                places.pop(0)
            if places and len(order) < OBSERVED_SAMPLES:
                order.append(int(places.pop(0)))
    return np.array(order[:OBSERVED_SAMPLES])
