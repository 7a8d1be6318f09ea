"""A picture of all files that a search made: size against signal-to-noise ratio."""

from __future__ import annotations

import io

from .search import Found, Trial


def pareto(trials: tuple[Trial, ...]) -> tuple[Trial, ...]:
    """Return the files that no other beats in size and ratio at once, the smallest first."""
    front: list[Trial] = []
    for trial in sorted(trials, key=lambda t: (t.bytes, -t.snr_db)):
        if not front or trial.snr_db > front[-1].snr_db:
            front.append(trial)
    return tuple(front)


def picture(found: Found, title: str) -> bytes:
    """Return an SVG: one point a file, its colour the latency, the front as a line."""
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
