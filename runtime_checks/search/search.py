"""`--search`: the worst inputs that a search finds for each file enter the golden set.

A search runs a file some hundred times, so it runs on this machine: the same runtime here, or the
format's usual one, replaces a target on another device, and the inputs found are then sent to the
device with all other samples.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from ...advance import counted
from ...artifacts.directory import ExportDirectory
from ...artifacts.golden_set import Arrays, GoldenSet
from ...artifacts.manifest import Artifact
from ...artifacts.network import Network
from ...artifacts.sample_kinds import SEARCH, TYPICAL
from ...artifacts.samples import SampleSet
from ...runtimes import HOSTS, LOCAL, RUNTIMES, Target, make_runner, usable_here
from ...runtimes.base import ArtifactError
from ...runtimes.session import Session
from ..end_to_end.comparison import compare_output
from ..own_samples import extended, known_network
from .explorer import Found, explore
from .probe import Objective

# Inputs of each search that enter the golden set.
_KEPT = 2

# Units of the error: for files of lower precision, and for those of float32.
_UNITS = ("its usual error", "the expected noise")


@dataclass(frozen=True)
class Searched:
    """One search.

    Attributes:
        artifact: The file that was run.
        target: Where it was run.
        runs: How often.
        before: Error of the worst real or random golden sample, as a multiple of its expected noise
            or, for a file of lower precision than float32, of the file's usual error.
        after: The same for the worst input found.
        unit: The unit of both, in words.
    """

    artifact: str
    target: str
    runs: int
    before: float
    after: float
    unit: str

    @property
    def sentence(self) -> str:
        """Describe the result."""
        return (
            f"search of {self.artifact} on {self.target}: {self.after:.3g}x {self.unit} after "
            f"{self.runs} runs; the samples it started from had {self.before:.3g}x"
        )


def with_found(
    golden: GoldenSet,
    export: ExportDirectory,
    pairs: Iterable[tuple[Target, Artifact]],
    *,
    runs: int,
    threads: int = 1,
    seed: int = 0,
) -> tuple[GoldenSet, tuple[Searched, ...]]:
    """Search on every file, and return the golden set with the worst inputs appended.

    Args:
        golden: The golden set.
        export: The export.
        pairs: Targets and files to check.
        runs: How often each file may be run.
        threads: Threads that each runtime may use.
        seed: Seed of the random generator.

    Returns:
        The golden set, with the new samples of kind "search", and the result of each search.

    Raises:
        UserError: Only Keras can evaluate a layer, or no input is of floats.
    """
    network = known_network(export, "A search needs", "Check without --search.")
    twins = dict.fromkeys((_twin(target, artifact), artifact.file) for target, artifact in pairs)
    by_file = {artifact.file: artifact for artifact in export.artifacts}
    searched: list[Searched] = []
    parts: list[Arrays] = []
    for target, file in counted(list(twins), lambda twin: f"search on {twin[1]}"):
        found = _search(by_file[file], export, network, golden, target, runs, threads, seed)
        if found is not None:
            after = float(found.worst.ratio[0])
            unit = _UNITS[by_file[file].precision == "float32"]
            searched.append(Searched(file, str(target), found.runs, found.start, after, unit))
            parts.append(found.worst.inputs)
    if not parts:
        return golden, ()
    inputs = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    kind = np.full(len(next(iter(inputs.values()))), SEARCH)
    return extended(golden, export, network, SampleSet(inputs, "search", "all"), kind), tuple(
        searched
    )


def _search(
    artifact: Artifact,
    export: ExportDirectory,
    network: Network,
    golden: GoldenSet,
    target: Target,
    runs: int,
    threads: int,
    seed: int,
) -> Found | None:
    """Search on one file; None for one that is damaged or cannot be run."""
    if export.damaged(artifact) is not None:
        return None
    try:
        with make_runner(target, export.path / artifact.file, threads=threads) as runner:
            session = Session(runner, artifact)
            objective = Objective(network, session.run, usual_error(artifact, golden))
            return explore(objective, golden, runs=runs, keep=_KEPT, seed=seed)
    except ArtifactError:
        return None


def _twin(target: Target, artifact: Artifact) -> Target:
    """Return the target on this machine to search in place of one on a device."""
    if target.device == LOCAL:
        return target
    entry = RUNTIMES[target.runtime]
    if entry.home == LOCAL and usable_here(target.runtime):
        return replace(target, device=LOCAL)
    return Target(HOSTS[artifact.format])


def usual_error(artifact: Artifact, golden: GoldenSet) -> dict[str, float]:
    """Return the root mean square error of a file of lower precision on usual samples."""
    if artifact.precision == "float32":
        return {}
    usual = np.isin(golden.kind, TYPICAL)
    found = {}
    for name, given in golden.artifacts.get(artifact.file, {}).items():
        metrics = compare_output(name, given[usual], golden.truth[name][usual])
        found[name] = float(np.sqrt(np.mean(np.square(metrics.rms_error))))
    return found
