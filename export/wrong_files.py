"""Compares the outputs of a new file with those of the trained model.

The checks find a wrong file too, with the layer at fault. Here no fault of a converter and no
unusable quantization goes unsaid, even if nobody runs the checks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ..artifacts.manifest import Artifact
from ..artifacts.network import Network
from ..artifacts.precisions import (
    LEAST_SNR,
    SMALLEST_NORMAL,
    WORST_SAMPLE_LIMIT,
    Arithmetic,
    precision_named,
)
from ..errors import UserError
from .options import MIXED

Arrays = Mapping[str, np.ndarray]

# An error beyond these is not rounding: relative to the greatest value of the output, and to the
# error of Keras in float32, which says how much a network amplifies rounding.
_OF_GREATEST = 1e-2
_OF_KERAS = 100.0

# A rounded number may decide differently, such as a comparison or a sort, in few elements.
MOST_DECIDED = 0.1


def notes_on_outputs(
    artifact: Artifact,
    given: Arrays,
    truth: Arrays,
    reference: Arrays,
    layer: Callable[[], str | None] = lambda: None,
    denormal: Callable[[], str | None] = lambda: None,
    noise: Arrays | None = None,
    logarithmic: Sequence[str] = (),
) -> tuple[str, ...]:
    """Return notes on outputs of a file that are far from the trained model's.

    Args:
        artifact: The file.
        given: Output name to (N, …) outputs of the file for typical samples.
        truth: The same of the trained model in float64.
        reference: The same of the trained model in float32.
        layer: Finds the layer that the converter converts wrongly, for the message of an error.
        denormal: Finds a layer with denormal weights that matter, for the same.
        noise: Output name to the (N,) root mean square errors that half precision explains, for a
            file of float16; None if its outputs cannot be judged.
        logarithmic: Layers that compute logarithms, as of a spectrum (`logarithmic_layers`).

    Raises:
        UserError: The file computes in floats, and more than rounding is wrong.
    """
    exact = precision_named(artifact.precision).arithmetic is Arithmetic.FLOAT32
    notes = []
    for name in truth:
        in_half = noise is not None and given[name].dtype.kind == "f"
        if noise is not None and in_half:
            wrong = beyond_noise(given[name], truth[name], noise[name])
            rounding = "half precision explains"
        else:
            wrong, rounding = unlike(given[name], truth[name], reference[name]), "rounding"
        ratio = artifact.snr_db.get(name)
        if (exact or in_half) and wrong.mean() > MOST_DECIDED:
            place = tuple(int(i) for i in np.unravel_index(int(np.argmax(wrong)), wrong.shape))
            raise UserError(
                f"{artifact.file} would be wrong: {100 * wrong.mean():.3g} % of output {name!r} "
                f"differ from the trained model by more than {rounding}, such as {list(place)}: "
                f"{given[name][place]:.6g} instead of {truth[name][place]:.6g}. "
                + (_denormal(denormal()) or _at_fault(layer()))
            )
        if exact and wrong.any():
            notes.append(
                f"{int(wrong.sum())} of {wrong.size} elements of output {name!r} differ from the "
                "trained model by more than rounding: a comparison of close numbers, or a fault"
            )
        elif not exact and given[name].dtype.kind != "f":
            equal = float((given[name] == np.rint(truth[name])).mean())
            if equal < 1:
                notes.append(f"{100 * equal:.3g} % of output {name!r} equal the trained model's")
        elif not exact and not np.isfinite(given[name][np.isfinite(truth[name])]).all():
            notes.append(f"output {name!r} is NaN or infinite where the trained model is not")
        elif not exact and ratio is not None and ratio < LEAST_SNR:
            notes.append(
                f"output {name!r} is {ratio:.1f} dB from the trained model, too far for most uses "
                f"(below {LEAST_SNR:g} dB): {_in_floats(artifact, logarithmic)}export another "
                "precision, or calibrate on real samples"
            )
    return tuple(notes)


def logarithmic_layers(network: Network) -> list[str]:
    """Return the layers that take logarithms, and those that compute what they are taken of.

    The integers of a power or a product hold few of the numbers of a logarithm, wherever they are
    computed. Layers with a kernel of their own, such as a convolution, end the search.
    """
    needed: set[str] = set()
    found: dict[str, None] = {}
    ends: set[str] = set()  # the layers of the logarithms
    for node in reversed(network.nodes):
        taken = node.op == "log"
        if taken:
            ends.add(node.layer)
        inside = node.name in needed and ("kernel" not in node.weights or node.layer in ends)
        if taken or inside:
            found[node.layer] = None
            needed |= set(node.inputs)
    return list(found)[::-1]


def _in_floats(artifact: Artifact, logarithmic: Sequence[str]) -> str:
    """Return the advice to compute layers in float whose numbers span many powers of ten."""
    if artifact.precision not in MIXED or not logarithmic:
        return ""
    names = ",".join(logarithmic)
    return f"keep the logarithms and what they are taken of in float (--keep-float {names}), "


def _denormal(layer: str | None) -> str:
    if layer is None:
        return ""
    return (
        f"Weights of layer {layer!r} are denormal numbers (below 1.2e-38), which some runtimes and "
        "processors replace by zero and others do not. Scale them up and the next layer's down, or "
        "set them to 0."
    )


def _at_fault(layer: str | None) -> str:
    if layer:
        return (
            f"The converter of this format converts layer {layer!r} wrongly. Replace that layer, "
            "or export another format."
        )
    return (
        "The converter of this format is at fault. Export another format, or leave out the layers "
        "that are unusual in the model to find the one that it converts wrongly."
    )


def beyond_noise(given: np.ndarray, truth: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Return where an output differs from the trained model by more than its noise explains.

    An element may err as much as a whole sample in the checks. Where a tenth of the elements err
    more, all together are beyond the limit of the checks on all samples, 1.5 < 5 √0.1.

    Args:
        given: (N, …) outputs of the file.
        truth: (N, …) float64.
        noise: (N,) root mean square errors that its arithmetic explains.
    """
    known = np.isfinite(truth)
    limit = (WORST_SAMPLE_LIMIT * noise).reshape(-1, *[1] * (truth.ndim - 1))
    with np.errstate(invalid="ignore"):
        return known & ~(np.abs(given - np.where(known, truth, 0)) <= limit)


def unlike(given: np.ndarray, truth: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return where an output differs from the trained model by more than rounding."""
    finite = np.isfinite(truth) & np.isfinite(reference)
    exact, own, got = (
        np.where(finite, values, 0).astype(np.float64) for values in (truth, reference, given)
    )
    usual = np.abs(own - exact).max(initial=0.0)
    greatest = max(_OF_GREATEST * np.abs(exact).max(initial=0.0), _OF_KERAS * usual)
    allowed = max(greatest, SMALLEST_NORMAL)  # smaller numbers may be replaced by zero
    with np.errstate(invalid="ignore"):
        return ~(np.abs(got - exact) <= allowed)
