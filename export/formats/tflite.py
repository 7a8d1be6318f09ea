"""Writes TFLite files from a frozen graph with TensorFlow's converter."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...artifacts.manifest import METADATA_KEY, TensorSpec
from ...artifacts.precisions import Arithmetic, precision_named
from ...child import DiedError, shared
from ...errors import UserError
from ...files import write_bytes
from ...locks import temporary_folder
from ...runtimes.base import Runner
from ...runtimes.litert import LiteRTRunner
from ...runtimes.run import load
from ..options import MIXED
from ..quantization.finish_tflite import finish
from ..quantization.portable import make_portable
from ..signature import Signature
from . import flatbuffer
from .base import Contents, Job, check_interface
from .distinct_outputs import separate_outputs
from .fence import UnnamedRefusalError, fenced, needs_child
from .freeze import FrozenGraph
from .halves import store_halves
from .rewrites import with_separate_biases, with_vector_sums
from .rewrites_3d import for_tflite
from .rewrites_integers import EIGHT_BITS, FLOATS, SIXTEEN_BITS, rewritten
from .rewrites_masks import with_near_masks
from .shared_memory import keep_from_overwriting
from .stand_ins import put_weights, replacements, share_buffers
from .tflite_converter import TRAINED, End, Request, convert, convert_file

_FLEX_ADVICE = (
    "replace the layer, or allow it (allow_flex=True, --allow-flex) and ship a runtime with "
    "TensorFlow's operators linked in."
)
_DESCRIPTION = "made by renormlite"
_FLOATS = ("float32", "float16")
_VARIABLE_OPS = {"READ_VARIABLE", "VAR_HANDLE", "ASSIGN_VARIABLE"}


class TFLite:
    """The format `tflite`."""

    name = "tflite"
    suffix = ".tflite"

    def write(self, job: Job, path: Path) -> None:
        """Convert a graph, name its tensors and write the file."""
        graph = job.graph
        what = f"The TFLite converter ({job.precision})"
        model = fenced(lambda part: _converted(part, job), graph, what)
        if model is None:  # it computes something from the stand-ins
            model = fenced(lambda part: _converted(part, job), graph.with_weights(), what)
        if job.trained is not None:
            finish(model, job.trained, graph.readable_name)
        if job.options.portable and job.precision in MIXED:
            make_portable(model)
        separate_outputs(model)
        keep_from_overwriting(model)
        flatbuffer.set_interface(
            model,
            [tensor.name for tensor in graph.signature.inputs],
            [tensor.name for tensor in graph.signature.outputs],
            graph.readable_name,
        )
        flatbuffer.set_metadata(model, {METADATA_KEY: job.metadata.encode()}, _DESCRIPTION)
        write_bytes(path, flatbuffer.packed(model))

    def validate(self, path: Path, job: Job) -> Contents:
        """Check operators, variables, interface and signature, then load the file once."""
        content = flatbuffer.content_of(flatbuffer.parse(path.read_bytes()))
        flex = sorted(op for op in content.ops if op.startswith("Flex"))
        if flex and not job.options.allow_flex:
            ops = [op.removeprefix("Flex") for op in flex]
            raise _without_operators(job.graph, ops)
        variables = sorted(_VARIABLE_OPS & set(content.ops))
        if variables:
            raise UserError(
                f"{path.name} reads variables ({', '.join(variables)}) that hold no weights in "
                "the file. Create them with `self.add_weight` so that they can be exported."
            )
        contents = Contents(content.ops, content.inputs, content.outputs)
        check_interface(path, contents, _expected(job))
        _check_signature(path, content)
        if not flex:  # flex files load only in a runtime with TensorFlow linked in
            if precision_named(job.precision).quantized:
                _load_in_child(path)
            else:
                # The export runs the file later, with XNNPACK, which copies the weights.
                with LiteRTRunner(path, variant="builtin"):
                    pass
        return contents

    def runner(self, path: Path) -> Runner:
        """Return a runner on LiteRT, with one thread for reproducible results."""
        return LiteRTRunner(path)


def _converted(graph: FrozenGraph, job: Job) -> Any:
    """Convert a graph with TensorFlow's converter.

    Returns:
        The parsed file; None if it cannot be made with stand-ins for the weights.

    Raises:
        UserError: The converter refuses the graph.
        DiedError: It crashed in the child process.
    """
    ends = (*graph.inputs, *graph.outputs)
    if job.precision not in _FLOATS or job.trained:
        graph = graph.with_weights()
    if precision_named(job.precision).arithmetic is Arithmetic.INTEGER and not job.trained:
        wide = job.precision not in MIXED
        graph = rewritten(graph, SIXTEEN_BITS if wide else EIGHT_BITS)
        batches = job.calibration.batches(graph.signature.inputs) if job.calibration else ()
        graph = with_near_masks(graph, (list(batch.values()) for batch in batches), wide=wide)
    elif not job.trained:
        graph = rewritten(graph, FLOATS)
    plain = with_vector_sums(graph.graph_def)
    if job.precision == "int16x8" and not job.trained:
        plain = with_separate_biases(plain)
    graph_def = for_tflite(
        plain,
        [tensor.op.name for tensor in ends],
        quantized=precision_named(job.precision).quantized,
    )
    weights = replacements(graph_def, graph.weights)
    samples = job.calibration.batches(graph.signature.inputs) if job.calibration else ()
    request = Request(
        tuple(map(End.of, graph.inputs)),
        tuple(map(End.of, graph.outputs)),
        TRAINED if job.trained else precision_named(job.precision).converter,
        job.options.allow_flex,
        job.options.quantized_io == "integer",
        [list(batch.values()) for batch in samples],
        job.choices,
        light=bool(weights),
    )
    try:
        if needs_child(graph, job.precision):
            with temporary_folder() as folder:
                path = folder / "graph"
                path.write_bytes(graph_def.SerializeToString())
                graph = graph.without_values()  # while the child converts, one copy is enough
                del plain, graph_def
                data = shared.call(convert_file, path, request)
        else:
            data = convert(graph_def, request)
    except (UserError, ImportError, DiedError):
        raise
    except Exception as error:  # the error types of the converter are not public
        raise _refusal(error, graph) from error
    model = flatbuffer.parse(data)
    if weights:
        share_buffers(model)
        if not put_weights(model, weights):
            return None
        if job.precision == "float16":
            store_halves(model)
    return model


def _load_in_child(path: Path) -> None:
    """Load a file where it can end no more than the child process.

    Raises:
        UserError: LiteRT crashes.
    """
    try:
        shared.call(load, "litert", path)
    except DiedError as died:
        raise UserError(
            f"LiteRT crashes ({died.cause}) when it loads {path.name}. Numbers of very different "
            "sizes can cause this, such as a mask that adds -1e9 outside a softmax: use a smaller "
            "number there, or export another precision."
        ) from died


def _expected(job: Job) -> Signature:
    """Return the interface the file must have."""
    signature = job.graph.signature
    integer = precision_named(job.precision).integer_io
    if job.options.quantized_io != "integer" or integer is None:
        return signature

    def quantized(tensor: TensorSpec) -> TensorSpec:
        is_float = np.dtype(tensor.dtype).kind == "f"
        return dataclasses.replace(tensor, dtype=integer) if is_float else tensor

    return Signature(
        tuple(map(quantized, signature.inputs)), tuple(map(quantized, signature.outputs))
    )


def _check_signature(path: Path, content: flatbuffer.Content) -> None:
    for kind, tensors, named in (
        ("input", content.inputs, content.signature_inputs),
        ("output", content.outputs, content.signature_outputs),
    ):
        if {tensor.name: tensor.name for tensor in tensors} != named:
            raise UserError(f"{path.name}: its signature names other {kind}s: {named}.")


def _without_operators(graph: FrozenGraph, ops: Sequence[str]) -> UserError:
    """Return the refusal of operators that TFLite lacks."""
    missing = f"TFLite has no operator for {graph.with_layers(ops)}: {_FLEX_ADVICE}"
    special = graph.draws_random_numbers(ops) or graph.computes_with_complex_numbers(ops)
    return UserError(special or missing)


def _refusal(error: Exception, graph: FrozenGraph) -> UserError:
    """Summarize the message of the converter in one sentence that names the layers, if it can."""
    text = str(error)
    ops = sorted(set(re.findall(r"Flex(\w+)", text)) | set(re.findall(r"'tf\.(\w+)' op", text)))
    if ops:
        return _without_operators(graph, ops)
    unranged = re.search(r"Failed for tensor (\S+)", text)
    if unranged:
        names = {
            t.op.name: s.name for t, s in zip(graph.inputs, graph.signature.inputs, strict=True)
        }
        name = names.get(unranged[1]) or graph.readable_name(unranged[1])
        return UserError(
            f"int16x8 files with integer inputs take floats only, and {name!r} holds none. Leave "
            "out quantized_io='integer' (--quantized-io integer), or export int8."
        )
    lines = [line for line in text.splitlines() if line.strip()]
    reason = re.sub(r'loc\([^"]*(?:"[^"]*:", )?"([^"]*)"[^)]*\)+', r"\1", lines[0] if lines else "")
    reason = graph.readable_name(reason or repr(error)).removeprefix("<unknown>:0: ")
    return UnnamedRefusalError(reason)
