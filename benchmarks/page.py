"""The parts of the benchmarks, and the writer of docs/benchmarks.md and its plots."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

Results = dict[str, Any]
Rows = list[dict[str, Any]]


class Part(NamedTuple):
    """One part.

    Attributes:
        title: Heading of its section.
        text: Description of the measurement.
        commands: Scripts of this folder with their arguments.
        plotted: Subjects in the picture; without any there is no picture.
        line: Value at which the picture has a line: equality.
        reading: Conclusions from the table.
        timed: Whether it measures time, so that its commands run one after another.
    """

    title: str
    text: str
    commands: tuple[tuple[str, ...], ...]
    plotted: tuple[str, ...] = ()
    line: float | None = None
    reading: str = ""
    timed: bool = True


_PURPOSE = """Renormalization is more accurate than batch normalization, and the intervals do not
overlap, in the dense and the deep network with two classes a batch at every batch size, in the
dense network with batches of 1, 2 and 4, in the deep network with batches of 2 and 4, on MNIST with
batches of 4, and on OSULeaf with batches of 2. In no case is it less accurate by more than the
intervals. There is no difference in the shallow network, where a statistic is over many pixels even
in a batch of one, in the dense one with batches of 8 and 32, and on OSULeaf with batches of 4.

With batches of 32 the run of the deep network is so short that batch normalization's stored
statistics still hold their initial values. Its weights are good, as the row with statistics
estimated anew shows, but its stored statistics are not. The moving statistics of
`BatchRenormalization` start as the mean over all batches so far (`warm_up`), so initial values have
no weight: stored statistics and those estimated anew give the same accuracy, and the latter equals
that of batch normalization within the intervals. Keras' `renorm=True` trains with statistics that
still hold initial values, and is less accurate than batch normalization with statistics estimated
anew.

Keras' `renorm=True` has no bounds from the first step on. It is better than the defaults here in
the dense network with batches of 1 and 2, and elsewhere the intervals overlap. Where a statistic is
over one or two numbers (dense and deep, batches of 1 and 2), GroupNormalization or no normalization
at all is better than any layer with statistics of the batch. A dense layer behind batch
normalization does not correct its statistics.

The int8 files have the accuracy of the float networks within the intervals, so what training gains
stays.

MobileNetV2 on digits at 64 pixels, trained from random weights for five epochs with batches of 8
(`examples/mobilenet_renorm.py`), depends on the momentum. With 0.9, batch normalization is ahead:
the statistics are the mean of about ten batches, whose noise batch renormalization trains against.
With 0.99, the default, the norms end within chance of each other, and batch normalization's stored
statistics are of no use in the first three epochs."""

_PEERS = (
    "ours / keras BatchNormalization",
    "ours / keras BatchNormalization(renorm)",
    "ours / raw fused operation",
)

_LAYER = """In graph mode the layer uses the fused kernels of TensorFlow on large tensors, which
Keras' layers do not, and takes 5 to 7 % longer than the raw fused operation, up to 15 % on a busy
machine: the target of 5 % is missed. The fused operation computes statistics and outputs in one
call; r and d depend on the statistics, so the outputs need a second pass over the tensor. Under
XLA, which has no such kernel, all layers take the same time. On small tensors about two dozen
scalar operations for r and d show: 9 to 11 % above Keras' BatchNormalization, where the target was
10 %. Fewer operations did not change that."""

_COVERAGE = """The norms of ConvNeXt are layer normalizations, whose statistics are those of each
sample. In DenseNet and ResNetV2 a norm is in front of a relu and behind a concatenation or a sum
that other layers read too. A positive scale moves through the relu into the layers behind it, and
the shift stays as an addition unless the layers before can take it; a negative scale cannot pass
the relu. EfficientNetV2 and MobileNetV3 keep the shift of the rescaling of their inputs, since a
convolution with zero padding follows."""

# Networks whose int8 files are timed.
_QUANTIZED = (
    *("MobileNetV2", "anomaly_detection", "keyword_spotting"),
    *("visual_wake_words", "image_classification"),
)

_INFERENCE = """A norm before the activation, as in MobileNetV2, costs nothing in the folded file,
and nothing in the stock files either; norms written by hand make the file slower by more than half
in ONNX Runtime. With norms behind the activation, the folded file is faster than the stock file in
every network, most on the older tflite-runtime, and least in image classification.

The folded MobileNetV2 and anomaly detection have the operators of the network without norms. Their
ratios on TFLite runtimes, 0.99 to 1.17, show by how much equal files can differ. EfficientNetB0
keeps the addition of its preprocessing, and ResNet50V2 one before each
first relu of a branch, as every pre-activation network does. The others keep one addition in front
of each zero-padded layer, which no fold can remove from a depthwise layer, and which is faster than
a further channel in a convolution (see the next section). In int8 an addition is a larger share,
since int8 convolutions take less time.

The stock ONNX file of EfficientNetB0 asks for two constants of its normalization as inputs, so it
is not timed. onnxsim and onnxslim change the time of the stock file by a few percent in either
direction; neither removes such norms. LiteRT aborts on the int8 file of visual wake words with
hand-written norms that TensorFlow's converter writes, so this cell is empty. Networks of less than
a tenth of a millisecond and rows with two threads vary much."""

_EXPORT = """The files alone take a seventh of the time of the stock exporters. With the proof
and the golden set, which are evaluated in float64, an export takes half to three fifths of it, and
as long for DenseNet121."""

_CHECK = """A check reads and hashes the file, the golden set and the network, in which each weight
is stored a second time, and compares weights and samples. For small networks this is fixed work of
10 to 20 ms, up to fifteen times plain inference. Where an inference takes 8 ms or more, a check
costs half as much again."""

_SEARCH = """The search finds the largest errors of int8 files, which grow along the paths that
saturate; random inputs do not. Rounding errors of float32 files do not grow in this way, and all
searches end at similar values, below the limit of 5 for one sample. Most of the hidden faults that
were not found cannot be reached within the range of the data, or no way to reach them is known."""

PARTS = {
    "purpose": Part(
        "What renormalization is for",
        "Accuracy on held-out real samples, mean over the seeds and its 95 % interval: "
        "scikit-learn's digits (8 x 8 pixels), 5,000 digits of MNIST (28 x 28) and the leaf "
        "outlines of OSULeaf (427 points, six classes, 200 training samples). All norms have "
        "their defaults and train the same steps on the same batches with Adam at 1e-3. `deep` has "
        "seven convolutions, the last two with a single pixel of scikit-learn's digits; `shallow` "
        "has two; `dense` has three dense layers; `series` has five convolutions over time. "
        "`BatchNormalization, Dense` puts a dense layer behind each norm. Rows marked "
        "`estimated anew` replace the stored statistics by those of the whole training set "
        "before inference; rows marked `int8` are of the int8 file, run by LiteRT.",
        (
            *(("purpose.py", "--only", f"digits, {name}") for name in ("dense", "shallow", "deep")),
            *(("purpose.py", "--only", data) for data in ("MNIST-5k", "OSULeaf")),
            ("purpose_int8.py",),
        ),
        (
            "BatchRenormalization",
            "BatchNormalization",
            "Keras renorm=True",
            "GroupNormalization",
            "none",
        ),
        reading=_PURPOSE,
        timed=False,
    ),
    "layer": Part(
        "Training step of the layer",
        "Forward and backward pass, TensorFlow on a CPU: the CPU time of our layer (all threads) "
        "divided by that of each other layer; median of the ratios within a round, and quartiles. "
        "Below 1, our layer is faster. Small tensors are traced without a static batch size, as in "
        "`fit`.",
        (
            ("layer.py", "--rounds", "40", "--clock", "cpu"),
            ("layer.py", "--xla", "--rounds", "20", "--clock", "cpu"),
            ("layer.py", "--small", "--rounds", "200", "--clock", "cpu"),
            ("layer.py", "--model", "--rounds", "15", "--clock", "cpu"),
        ),
        _PEERS,
        1.0,
        reading=_LAYER,
    ),
    "inference": Part(
        "Inference of the exported files",
        "CPU time of our folded file divided by that of other files of the same architecture, "
        "batch 1: the file of the stock exporters, that file after onnxsim and onnxslim, a file "
        "with each norm as separate operators, and the twin, which is the same network without "
        "norms. Applications have 96 px; the networks of MLPerf Tiny have each norm behind the "
        "activation. Median of the ratios within a round, and quartiles. With one thread, this is "
        "the ratio of latencies; with two, that of the work of both.",
        (("inference.py",), ("inference.py", "--precision", "int8", *_QUANTIZED)),
        ("folded / stock", "folded / hand-written", "folded / twin"),
        1.0,
        reading=_INFERENCE,
    ),
    "padding": Part(
        "A shift in front of zero padding",
        "CPU time of five 3 x 3 convolutions with four norms behind their relus, divided by that "
        "of the same convolutions without norms, one thread: with a channel of ones, which the "
        "fold uses below 16 channels and where they are no multiple of 8, and with an addition, "
        "which it uses otherwise. Median of the ratios within a round, and quartiles.",
        (("padding.py",), ("padding.py", "--precision", "int8")),
    ),
    "coverage": Part(
        "What the fold leaves",
        "Operations that the norms of keras.applications leave after the fold, with random "
        "statistics, and gammas that are positive or of both signs. A network that folds without "
        "a remainder has none.",
        tuple(
            ("fold_applications.py", "--no-proof", "--gammas", gammas)
            for gammas in ("positive", "mixed")
        ),
        reading=_COVERAGE,
        timed=False,
    ),
    "fold": Part(
        "Speed of the fold",
        "CPU time of the fold without proof divided by that of `clone_model` and a copy of the "
        "weights, which every fold needs.",
        (("fold_speed.py",),),
    ),
    "export": Part(
        "Speed of the export",
        "Time of our export divided by that of `model.export` to LiteRT and to ONNX. `files` "
        "writes and validates the same two files; `all` adds the proof, the golden set and the "
        "manifest.",
        (("export_time.py", "--pairs", "3"),),
        ("files / stock", "all / stock"),
        1.0,
        reading=_EXPORT,
    ),
    "check": Part(
        "Cost of a check",
        "CPU time of `check_parity` on a float32 file, without per-op checks, divided by that of "
        "plain inference: load the file and run its golden samples on one thread. Nothing is "
        "cached between checks. `SHA-256` is the time of hashing the file, the golden set and the "
        "network alone. Median of the ratios within a round, and quartiles.",
        (("check_cost.py", "--clock", "cpu"),),
        reading=_CHECK,
    ),
    "search": Part(
        "Search for the largest error",
        "200 runs of `check --search` (`both`), of its two halves (`reach` maximizes single units, "
        "`climb` follows gradients of the error), and of random inputs. *Hidden faults* are units "
        "of the network clipped 1 % above their largest value for any golden sample; a search "
        "finds one if a sample exceeds the limit. *Largest error* is that of a correct file, in "
        "multiples of the noise (float32) or of the usual error of the file (int8).",
        (("check_search.py", "--units", "24"),),
        reading=_SEARCH,
    ),
    "diagnostics": Part(
        "Cost of RenormDiagnostics",
        "CPU time of a training step with `RenormDiagnostics` divided by that of one without; "
        "`off` is a second run without it, which shows the noise.",
        (("diagnostics.py",),),
    ),
}

_HEAD = """# Benchmarks

`make bench` runs every part; `make bench PARTS="purpose layer"` runs some. This page and its
pictures are written from [benchmarks.json](benchmarks.json), which holds each number with its
spread and count, the machine, the versions and the load of the machine when the part started.
Ratios are medians of pairs in one process and depend little on the load; milliseconds depend on it.
"""

_COLORS = ("#c2410c", "#1d4ed8", "#0f766e", "#9aa5b1", "#a16207")


def cell(row: dict[str, Any]) -> str:
    """Return a number with its spread as the page writes it."""
    digits = {"ms": 2, "s": 1, "accuracy": 3, "count": 0}.get(row["unit"], 2)
    value, low, high = (f"{row[key]:.{digits}f}" for key in ("value", "low", "high"))
    return value if row["count"] == 1 else f"{value} ({low} to {high})"


def page(results: Results) -> str:
    """Return the text of the page."""
    text = [_HEAD, *_total(results)]
    for name, part in PARTS.items():
        if name not in results:
            continue
        found = results[name]
        text += [f"## {part.title}", "", part.text, ""]
        if part.plotted:
            text += [f"![{part.title}](benchmarks_{name}.png)", ""]
        text += [*_table(found["rows"]), "", _provenance(name, found), ""]
        text += [part.reading, ""] if part.reading else []
    return "\n".join(text)


def write_page(results: Results, folder: Path) -> None:
    """Write the page and its pictures into a folder."""
    (folder / "benchmarks.md").write_text(page(results))
    for name, part in PARTS.items():
        if name in results and part.plotted:
            _plot(part, results[name]["rows"], folder / f"benchmarks_{name}.png")


def _total(results: Results) -> list[str]:
    """Return the time of all parts on two cores, once all have been run."""
    seconds = {name: results.get(name, {}).get("cpu_seconds") for name in PARTS}
    if None in seconds.values():
        return []
    alone = sum(seconds[name] for name, part in PARTS.items() if part.timed) / 60
    shared = sum(seconds[name] for name, part in PARTS.items() if not part.timed) / 60
    return [
        f"On two cores that do nothing else, all parts together take about "
        f"{alone + shared / 2:.0f} minutes: those that measure time run one after another "
        f"({alone:.0f} minutes of processor time), the others share all cores "
        f"({shared:.0f} minutes).",
        "",
    ]


def _table(rows: Rows) -> list[str]:
    subjects = list(dict.fromkeys(row["subject"] for row in rows))
    cells = {(row["case"], row["subject"]): cell(row) for row in rows}
    lines = ["| | " + " | ".join(subjects) + " |", "| --- |" + " ---: |" * len(subjects)]
    for case in dict.fromkeys(row["case"] for row in rows):
        lines.append(f"| {case} | " + " | ".join(cells.get((case, s), "") for s in subjects) + " |")
    return lines


def _provenance(name: str, found: dict[str, Any]) -> str:
    machine = found["machine"]
    counts = sorted({row["count"] for row in found["rows"]})
    many = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    versions = ", ".join(f"{package} {number}" for package, number in machine["versions"].items())
    used = found.get("cpu_seconds")
    processor = "" if used is None else f" ({used} s of processor time)"
    return (
        f"`make bench PARTS={name}`, {found['date']}, {found['seconds']} s{processor}, "
        f"{many} measurements a number; "
        f"{machine['processor']}, {machine['cores']} cores, load {found['load_before']} at the "
        f"start; Python {machine['python']}, {versions}."
    )


def _plot(part: Part, rows: Rows, path: Path) -> None:
    from matplotlib.figure import Figure

    cases = list(dict.fromkeys(row["case"] for row in rows if row["subject"] in part.plotted))
    cases = [case for case in cases if not case.endswith(("estimated anew", "int8", "2 threads"))]
    figure = Figure(figsize=(9.0, 1.0 + 0.36 * len(cases)), layout="constrained", dpi=110)
    axes = figure.subplots()
    for index, (subject, color) in enumerate(zip(part.plotted, _COLORS, strict=False)):
        of_subject = {row["case"]: row for row in rows if row["subject"] == subject}
        shown = [(at, of_subject[case]) for at, case in enumerate(cases) if case in of_subject]
        if not shown:
            continue
        offset = 0.12 * (index - (len(part.plotted) - 1) / 2)
        values = [row["value"] for _, row in shown]
        spread = [
            [row["value"] - row["low"] for _, row in shown],
            [row["high"] - row["value"] for _, row in shown],
        ]
        axes.errorbar(
            values, [at + offset for at, _ in shown], xerr=spread, label=subject, color=color,
            fmt="o", markersize=4.5, elinewidth=1.4, capsize=0,
        )  # fmt: skip
    if part.line is not None:
        axes.axvline(part.line, color="#1f2933", linewidth=0.8, linestyle="--")
    axes.set_yticks(range(len(cases)), cases, fontsize=8)
    axes.invert_yaxis()
    axes.set_title(part.title, loc="left", fontsize=11)
    axes.set_xlabel(
        "accuracy, with the 95 % interval of the mean"
        if part.line is None
        else "ratio, with quartiles",
        fontsize=9,
    )
    axes.grid(axis="x", color="#e4e7eb", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    figure.savefig(path)
