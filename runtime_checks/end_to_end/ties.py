"""Recognizes outputs that follow a rounding rule but for ties.

Where a runtime computes in floats before it rounds, its result may be on the other side of a tie
than the exact one (`reference.integer`). Then a few samples differ from the prediction, each by a
step somewhere in the network. They are predicted anew with the ties turned.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import chain

import numpy as np

from ...artifacts.directory import ExportDirectory
from ...artifacts.golden_set import Arrays, GoldenSet
from ...artifacts.manifest import Artifact
from ...reference.integer.file_outputs import turned_outputs
from .integer_agreement import IntegerAgreement, differing_samples

# Samples that are predicted anew; another rule differs in more.
_MOST = 16


def with_ties_turned(
    export: ExportDirectory,
    artifact: Artifact,
    golden: GoldenSet,
    agreed: IntegerAgreement | None,
    outputs: Arrays,
) -> GoldenSet:
    """Return a golden set in which the nearest rule has a target's ties.

    Args:
        export: The export that the artifact belongs to.
        artifact: The file that gave the outputs.
        golden: The samples, with the predictions for the file.
        agreed: How the outputs agree with these predictions; None for a file without any.
        outputs: Keras output name to (N, …).

    Returns:
        The same one if a rule fits, or if ties do not explain any sample.
    """
    if agreed is None or agreed.kernels or not agreed.nearest:
        return golden
    predictions = golden.predictions[artifact.file]
    steps = predictions.steps
    wrong = differing_samples(outputs, agreed.expected, steps, golden)
    if len(wrong) > _MOST:
        return golden
    part = golden.select(wrong)
    expected = {name: array.copy() for name, array in agreed.expected.items()}
    given = {name: outputs[name][wrong] for name in expected if name in outputs}
    explained: set[int] = set()
    path = export.path / artifact.file
    # Rules that agree on these samples may have other ties.
    rules = [
        rule
        for rule, arrays in predictions.by_rule.items()
        if all(np.array_equal(arrays[name], array) for name, array in agreed.expected.items())
    ]
    for turned in chain(*(turned_outputs(path, artifact, part.inputs, rule) for rule in rules)):
        left = differing_samples(given, turned, steps, part)
        for place in set(range(len(wrong))) - set(left.tolist()) - explained:
            explained.add(place)
            for name, array in expected.items():
                array[wrong[place]] = turned[name][place]
    if not explained:
        return golden
    others = {rule: a for rule, a in predictions.by_rule.items() if rule not in rules}
    few = f"{len(explained)} sample{'s' * (len(explained) > 1)}"
    name = f"{', '.join(rules)}, with ties turned in {few}"
    new = replace(predictions, by_rule={**others, name: expected})
    return replace(golden, predictions={**golden.predictions, artifact.file: new})
