"""Plots all trials of a search: signal-to-noise ratio against size."""

from __future__ import annotations

import io

from .search import SearchResult, Trial


def pareto(trials: tuple[Trial, ...]) -> tuple[Trial, ...]:
    """Return the Pareto-optimal trials by size and signal-to-noise ratio, the smallest first."""
    front: list[Trial] = []
    for trial in sorted(trials, key=lambda t: (t.bytes, -t.snr_db)):
        if not front or trial.snr_db > front[-1].snr_db:
            front.append(trial)
    return tuple(front)


def picture(found: SearchResult, title: str) -> bytes:
    """Return an SVG plot: a point per file, coloured by latency, and the Pareto front."""
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    sizes = [trial.bytes / 1024 for trial in found.trials]
    points = axes.scatter(
        sizes,
        [trial.snr_db for trial in found.trials],
        c=[trial.milliseconds for trial in found.trials],
        cmap="viridis",
        zorder=3,
    )
    front = pareto(found.trials)
    axes.plot([t.bytes / 1024 for t in front], [t.snr_db for t in front], color="#9aa5b1")
    chosen, plain = found.chosen, found.trials[0]
    for trial, name in ((plain, "int8"), (chosen, "auto")):
        place = (trial.bytes / 1024, trial.snr_db)
        axes.annotate(name, place, xytext=(6, 6), textcoords="offset points")
    axes.set(xlabel="size (KiB)", ylabel="SNR on held-out samples (dB)", title=title)
    figure.colorbar(points, label="latency on this machine (ms)")
    stream = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "renormlite"}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()
