"""Exports a trained model: artifacts, golden set, network and manifest."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import keras

from ..artifacts.class_names import ClassNames, class_counts, find_class_names
from ..artifacts.images import Preprocessing
from ..artifacts.manifest import Artifact, Manifest
from ..artifacts.network import Network
from ..artifacts.samples import SampleSet, Source, load_samples
from ..errors import UserError
from ..files import sha256
from . import golden_set as golden
from .files import ArtifactWriter
from .fold import (
    InputValues,
    Shapes,
    fold,
    prepare,
    values_of_inputs,
)
from .fold.backend import require_tensorflow
from .fold.weight_files import weights_in_files
from .formats.format_table import needs_calibration
from .input_norms import with_input_norms
from .network.write import build_network
from .notes import notes_on_model
from .number_limits import refuse_size, refuse_weights
from .options import ExportOptions
from .partial import PartialExportError
from .progress import Listener, Steps
from .provenance import Provenance
from .quantization.calibration import RANDOM, RANDOM_COST, Calibration, load_calibration
from .quantization.recipe import Recipe
from .quantization.trained import TrainedModel, trained_model
from .run import ExportRun, Truth
from .signature import (
    Signature,
    built_for,
    is_symbolic,
    refuse_unprintable_names,
    signature_of,
)
from .staging import moved_in_when_done
from .stream import Stream
from .text_samples import TextSamples
from .variants import Variants


def export_model(
    model: keras.Model,
    directory: str | os.PathLike[str],
    *,
    formats: Sequence[str] = ExportOptions.formats,
    precisions: Sequence[str] = ExportOptions.precisions,
    calibration: Source | None = None,
    calibration_samples: int = ExportOptions.calibration_samples,
    inputs: Source | None = None,
    batch_size: int | None = ExportOptions.batch_size,
    layout: str = ExportOptions.layout,
    opset: int = ExportOptions.opset,
    split_outputs: Sequence[str] = ExportOptions.split_outputs,
    quantized_io: str = ExportOptions.quantized_io,
    equalize: str = ExportOptions.equalize,
    keep_float: Sequence[str] = ExportOptions.keep_float,
    keep_int16: Sequence[str] = ExportOptions.keep_int16,
    input_norms: str = ExportOptions.input_norms,
    portable: bool = ExportOptions.portable,
    budget: str = ExportOptions.budget,
    recipe: Recipe | None = ExportOptions.recipe,
    allow_flex: bool = ExportOptions.allow_flex,
    labels: Sequence[str] = ExportOptions.labels,
    preprocessing: Preprocessing | None = ExportOptions.preprocessing,
    preprocessing_in_model: bool = ExportOptions.preprocessing_in_model,
    description: str = ExportOptions.description,
    source: str | os.PathLike[str] | None = None,
    shapes: Shapes | None = None,
    listener: Listener | None = None,
) -> Manifest:
    """Fold a model; write it in the given formats and precisions, with the data for its checks.

    Writes `NAME.PRECISION.tflite|onnx|saved_model`, `golden.npz`, `network.npz` and, last,
    `manifest.json` into `directory`, where NAME is the name of the directory. All files are written
    to a temporary folder and moved when they are complete: an interrupted or failed export leaves
    the old files unchanged.

    Args:
        model: A trained Keras model, built. It is not changed.
        directory: The directory to write to; created if missing.
        formats: `tflite`, `onnx`, `saved_model`.
        precisions: `float32`; `float16` (weights; TFLite computes in float32); `dynamic` (int8
            weights, activations quantized at run time); `int8`; `auto` (int8 with the recipe that
            measures best, single layers in more bits); `int16x8` (int16 activations, TFLite only);
            `int4` (4-bit weights, TFLite only). A precision that a format does not support is not
            written in that format.
        calibration: Real samples that determine the ranges of int8 and int16x8 files: an array or
            dict of arrays by input name, `.npz`, `.npy`, a folder of images, a `tf.data.Dataset`,
            or `"module:function"`. Data that looks like noise is refused; `"random"` uses random
            numbers. None means `inputs`.
        calibration_samples: Calibrate with at most this many of them, evenly spaced.
        inputs: Real samples for the golden set, in any form that `calibration` takes; by default
            the calibration samples, if real ones were used.
        batch_size: Batch size of the files; None leaves it free.
        layout: `nhwc`, or `nchw` for ONNX files whose inputs and outputs are channels-first.
        opset: Version of the ONNX operator set.
        split_outputs: Names of outputs that join parts along the last axis, such as boxes and
            scores. The files return the parts instead, named after their layers, each with its own
            quantization.
        quantized_io: `float`, or `integer` for int8 and int16x8 TFLite files with integer inputs
            and outputs.
        equalize: Whether quantized files are made from weights equalized across layers: `auto`
            (where it raises the measured signal-to-noise ratio), `always` or `never`.
        keep_float: Layers that int8 files compute in float32: names, paths (`block/conv`) or
            patterns (`conv*`).
        keep_int16: Layers that get 16-bit activations in int8 files; ONNX files need opset 21.
        input_norms: Treatment of norms that read an input: `fold`; `keep` (in front of the
            network); or `auto`, which keeps them in quantized and float16 files where that raises
            the measured signal-to-noise ratio by 3 dB, on real samples or, without any, on samples
            drawn from the norms' statistics.
        portable: Whether the scales of weights in int8 TFLite files are adjusted by units in the
            last place, so that more runtimes compute equal integers (docs/quantization.md).
        budget: Limits of an auto file: `120KB`, `2.5ms`, `40dB`, or several separated by commas; by
            default 10 % more bytes than the int8 file.
        recipe: Recipe of int8 and auto files, instead of a search (docs/quantization.md).
        allow_flex: Whether TFLite files may call TensorFlow operators, which most runtimes lack.
        labels: Names of the classes, stored as metadata.
        preprocessing: Conversion of pixels to inputs; stored as metadata and applied to folders of
            images.
        preprocessing_in_model: Whether the files compute the preprocessing and take raw pixels,
            `uint8`. Samples of every source are raw pixels then.
        description: One line about the model, stored as metadata.
        source: The file the model was loaded from; its hash goes into the manifest.
        shapes: Sizes of the free axes of inputs, by input name.
        listener: Called at the beginning and end of every step.

    Returns:
        The manifest, with the time that each file took.

    Raises:
        UserError: The model cannot be exported or an option is invalid; the message says how to fix
            it.
        PartialExportError: Some files were refused, and the others are written. It is a UserError
            with the manifest of the others.
    """
    options = ExportOptions(
        formats=tuple(formats),
        precisions=tuple(precisions),
        batch_size=batch_size,
        opset=opset,
        layout=layout,
        split_outputs=tuple(split_outputs),
        quantized_io=quantized_io,
        equalize=equalize,
        keep_float=tuple(keep_float),
        keep_int16=tuple(keep_int16),
        input_norms=input_norms,
        portable=portable,
        budget=budget,
        recipe=recipe,
        calibration_samples=calibration_samples,
        allow_flex=allow_flex,
        labels=tuple(labels),
        preprocessing=preprocessing,
        preprocessing_in_model=preprocessing_in_model,
        description=description,
    )
    with weights_in_files(Path(directory)):
        run = _prepare(model, directory, options, calibration, inputs, source, shapes, listener)
        with moved_in_when_done(Path(directory)) as staging:
            manifest = run.export(staging)
    if manifest.refused:
        raise PartialExportError(manifest)
    return manifest


def describe_files(
    model: keras.Model,
    directory: str | os.PathLike[str],
    describe: Callable[[Path, Truth], Sequence[Artifact]],
    *,
    inputs: Source | None = None,
    labels: Sequence[str] = (),
    preprocessing: Preprocessing | None = None,
    source: str | os.PathLike[str] | None = None,
    shapes: Shapes | None = None,
    listener: Listener | None = None,
) -> Manifest:
    """Write the data for checks of files that `export_model` did not make.

    Args:
        model: The trained Keras model that the files should compute.
        directory: The directory to write to; created if missing.
        describe: Copies the files into a folder and returns their descriptions.
        inputs: See `export_model`.
        labels: See `export_model`.
        preprocessing: See `export_model`.
        source: See `export_model`.
        shapes: See `export_model`.
        listener: See `export_model`.

    Returns:
        The manifest.

    Raises:
        UserError: The model cannot be read, or the samples do not fit it.
    """
    options = ExportOptions(labels=tuple(labels), preprocessing=preprocessing)
    with weights_in_files(Path(directory)):
        run = _prepare(model, directory, options, None, inputs, source, shapes, listener)
        with moved_in_when_done(Path(directory)) as staging:
            return run.complete(staging, functools.partial(describe, staging))


def folded_network(
    model: keras.Model,
    shapes: Shapes | None = None,
    preprocessing: Preprocessing | None = None,
    split: Sequence[str] = (),
) -> Network:
    """Return the network that an export of a model would contain.

    Args:
        model: A trained Keras model.
        shapes: See `export_model`.
        preprocessing: The preprocessing of raw pixels in the files; None for none.
        split: Names of outputs that the files return in parts.

    Raises:
        UserError: The model cannot be exported.
    """
    model = prepare(model, shapes, preprocessing=preprocessing, split=split).model
    folded = fold(model).model
    signature = _public_signature(model, folded)
    return build_network(folded).named(
        [tensor.name for tensor in signature.inputs], [tensor.name for tensor in signature.outputs]
    )


def _prepare(
    model: keras.Model,
    directory: str | os.PathLike[str],
    options: ExportOptions,
    calibration: Source | None,
    inputs: Source | None,
    source: str | os.PathLike[str] | None,
    shapes: Shapes | None,
    listener: Listener | None,
) -> ExportRun:
    """Fold a model and read the samples."""
    require_tensorflow("Export")
    calibration = inputs if calibration is None else calibration
    trained = trained_model(model)
    needing = _needing_calibration(options, trained)
    _require_samples(needing, calibration)
    target = Path(directory)
    step = Steps(listener) if listener else Steps()
    if trained is not None:
        model = trained.float_model
    original = model
    with step("model", "prepare"):
        prepared = prepare(
            model,
            shapes,
            preprocessing=options.preprocessing if options.preprocessing_in_model else None,
            split=options.split_outputs,
        )
        model = prepared.model
    refuse_unprintable_names(model)
    refuse_size(model, options.files)
    with step("model", "fold"):
        folded = fold(model, keep_input_norms=options.input_norms == "keep")
    signature = _public_signature(model, folded.model)
    batch_size, batch_notes = _batch_size(model, options.batch_size)
    values = values_of_inputs(model)
    with_norms = None
    if options.input_norms == "auto" and trained is None and set(options.precisions) != {"float32"}:
        with step("model", "norms of inputs"):
            with_norms = with_input_norms(model, folded, signature, values)
    left = with_norms.names if with_norms else folded.report.input_norms
    refuse_weights((with_norms or folded).model, options.precisions, left)
    classes = ClassNames(options.labels)
    if not options.labels:
        beside = None if source is None else Path(source)
        classes = find_class_names(inputs, class_counts(signature.outputs), beside)
        options = dataclasses.replace(options, labels=classes.names)
    stream = Stream(model, signature, prepared.states)
    real = None
    with tempfile.TemporaryDirectory() as folder, _said_with_errors(prepared.cut):
        if prepared.cut:
            text = TextSamples(original, [t.name for t in stream.inputs], Path(folder))
            calibration, inputs = text.computed(calibration), text.computed(inputs)
        samples = _calibration(options, calibration, stream, values) if needing else None
        if inputs is not None:
            real = load_samples(
                inputs,
                stream.inputs,
                limit=golden.MOST_REAL,
                preprocessing=options.samples_preprocessing,
            )
    if real is not None:
        real = stream.completed(real)
    elif samples is not None and not samples.random:
        real = samples.samples.take(golden.MOST_REAL)
    provenance = Provenance(
        name=target.resolve().name,
        source={
            "model_name": model.name,
            "sha256": None if source is None else sha256(source),
        },
        options=options,
    )
    variants = Variants(
        folded,
        signature,
        _judges(samples, real),
        batch_size=batch_size,
        equalize=options.equalize,
        trained=trained,
        with_norms=with_norms,
        original=model,
        nested=prepared.paths,
        pixels=options.preprocessing_in_model,
    )
    return ExportRun(
        model=model,
        folded=folded,
        signature=signature,
        states=prepared.states,
        notes=prepared.notes
        + batch_notes
        + notes_on_model(model, folded.report)
        + ((classes.note,) if classes.note else ()),
        writer=ArtifactWriter(provenance, variants, samples, step),
        samples=stream.typical(
            golden.choose_samples(signature.inputs, values, real.arrays if real else None)
        ),
    )


def _needing_calibration(options: ExportOptions, trained: TrainedModel | None) -> list[str]:
    """Return the files that need calibration samples for the ranges of activations.

    Raises:
        UserError: The model is quantization-aware, and trained for another precision.
    """
    needed = [(name, p) for name, p in options.files if needs_calibration(name, p)]
    if trained is None:
        return [f"{name} {precision}" for name, precision in needed]
    if (
        options.keep_float
        or options.keep_int16
        or options.portable
        or options.recipe
        or options.preprocessing_in_model
        or options.split_outputs
    ):
        raise UserError(
            "keep_float, keep_int16, portable, recipe, preprocessing_in_model and split_outputs "
            "are for models that are calibrated. Received: a quantization-aware model, whose "
            "scales are fixed. Use the options float_layers and rounding of quantize_aware, and a "
            "model that begins with its preprocessing and returns its parts, instead."
        )
    others = sorted({precision for _, precision in needed} - {trained.precision})
    if others:
        raise UserError(
            f"Expected precisions that the model was trained for: {trained.precision}. Received: "
            f"{', '.join(others)}. Train with other activation_bits, or export the float model."
        )
    return []


def _require_samples(needed: list[str], source: Source | None) -> None:
    """Require that the user names calibration samples, or asks for random ones."""
    if needed and source is None:
        raise UserError(
            f"{' and '.join(needed)} files take the ranges of activations from real samples. "
            f"Give some (calibration=…, --calibration DATA), or {RANDOM!r} for random numbers: "
            f"{RANDOM_COST}."
        )


@contextlib.contextmanager
def _said_with_errors(notes: Sequence[str]) -> Iterator[None]:
    """Add the notes on inputs that the app must compute to errors in samples."""
    try:
        yield
    except UserError as error:
        if not notes:
            raise
        raise UserError(f"{error} The {'; the '.join(notes)}.") from error


def _calibration(
    options: ExportOptions,
    source: Source | None,
    stream: Stream,
    values: Sequence[InputValues],
) -> Calibration | None:
    """Load calibration samples."""
    calibration = load_calibration(
        source,
        stream.inputs,
        [v for t, v in zip(stream.signature.inputs, values, strict=True) if t in stream.inputs],
        limit=options.calibration_samples,
        preprocessing=options.samples_preprocessing,
    )
    if calibration is None:
        return None
    return dataclasses.replace(calibration, samples=stream.completed(calibration.samples))


def _batch_size(model: keras.Model, asked: int | None) -> tuple[int | None, tuple[str, ...]]:
    """Return the batch size of the files, and a note if the model determines it."""
    only = built_for(model)
    if only is None or asked == only:
        return asked, ()
    if asked != 1:
        raise UserError(
            f"The model is built for batches of {only}. Received batch_size: {asked}. Build it "
            "with keras.Input(shape), without a batch size, or leave batch_size out."
        )
    return only, (f"the model is built for batches of {only}, and so are its files",)


def _judges(calibration: Calibration | None, real: SampleSet | None) -> SampleSet | None:
    """Return the real samples on which quantized files are measured; None if there are none."""
    if calibration is not None and not calibration.random:
        return calibration.samples
    return real


def _public_signature(model: keras.Model, folded: keras.Model) -> Signature:
    """Return the signature of the trained model, since folding may replace the named layers.

    A subclassed model has no symbolic inputs; the signature of its trace is used.
    """
    return signature_of(model if is_symbolic(model) else folded)
