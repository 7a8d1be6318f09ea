"""Outputs that join parts with very different ranges, for which one step is too coarse."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

import numpy as np

from ..artifacts.joined_outputs import joined_outputs
from ..artifacts.network import Network

_UNEQUAL = 8.0  # ratio of ranges: three of eight bits


def unequal_parts(network: Network, outputs: Mapping[str, np.ndarray]) -> Iterator[str]:
    """Yield a sentence for each output that should be split in files of 8-bit integers.

    Args:
        network: The folded network, its outputs under their public names.
        outputs: Output name to (N, …) real values.
    """
    for name, parts in joined_outputs(network).items():
        ends = np.cumsum([0, *(part.size for part in parts)])
        if name not in outputs or ends[-1] != outputs[name].shape[-1]:
            continue
        ranges = [
            float(np.abs(outputs[name][..., start:end]).max(initial=0.0))
            for start, end in itertools.pairwise(ends)
        ]
        if min(ranges) > 0 and max(ranges) > _UNEQUAL * min(ranges):
            listed = ", ".join(
                f"{part.layer} up to {most:.3g}" for part, most in zip(parts, ranges, strict=True)
            )
            yield (
                f"output '{name}' joins parts with different ranges ({listed}), which share a step "
                f"of at least {max(ranges) / 255:.2g}; --split-outputs {name} gives each part its "
                "own step"
            )
