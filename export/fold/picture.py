"""A picture of a network before and after the fold: one row a call, edges on the left, SVG."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from .cost import remaining_ops
from .graph import ActivationOp, AffineOp, Call, Graph, MapOp, Source
from .linear import Linear
from .report import FoldReport

_ROW = 26
_BOX = 340
_LANE = 12
_TOP = 64
_COLOURS = {
    "plain": "#eceff1",
    "input": "#cfd8dc",
    "absorbs": "#bbdefb",
    "folded": "#c8e6c9",
    "partly folded": "#fff59d",
    "kept": "#ffcdd2",
}
_LEGEND = {
    "folded": "norm that folds completely",
    "partly folded": "norm of which something stays",
    "kept": "norm that stays",
    "absorbs": "layer that absorbs",
}


def draw(before: Graph, after: Graph, report: FoldReport) -> str:
    """Draw two graphs side by side.

    Args:
        before: The recognized network, nothing folded.
        after: The folded network.
        report: What became of the norms; gives the colours.

    Returns:
        An SVG document.
    """
    outcomes = {record.name: record.outcome for record in report.records}
    absorbers = {layer for record in report.records for layer in record.into}
    columns = [_Column(graph, outcomes, absorbers) for graph in (before, after)]
    width = sum(column.width for column in columns) + 40
    height = max(len(column.calls) for column in columns) * _ROW + _TOP + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        *_legend(),
    ]
    left = 10
    for title, column in zip(("before", "after"), columns, strict=True):
        parts.append(
            f'<text x="{left + column.margin}" y="{_TOP - 14}" font-weight="bold">'
            f"{title}: {len(column.calls)} layers</text>"
        )
        parts.append(f'<g transform="translate({left},{_TOP})">')
        parts.extend(column.svg())
        parts.append("</g>")
        left += column.width + 20
    return "\n".join([*parts, "</svg>", ""])


def _legend() -> Iterator[str]:
    for i, (key, text) in enumerate(_LEGEND.items()):
        x = 10 + i * 230
        yield f'<rect x="{x}" y="10" width="14" height="14" fill="{_COLOURS[key]}"/>'
        yield f'<text x="{x + 20}" y="22">{text}</text>'


class _Column:
    """One graph: a box a call in order, and the edges that do not go to the next row."""

    def __init__(self, graph: Graph, outcomes: dict[str, str], absorbers: set[str]) -> None:
        self.calls = graph.calls()
        self.outcomes = outcomes
        self.absorbers = absorbers
        self.rows = {call: i for i, call in enumerate(self.calls)}
        edges = sorted(
            {(self.rows[v.producer], row) for call, row in self.rows.items() for v in call.inputs}
        )
        self.lanes = _lanes([edge for edge in edges if edge[1] - edge[0] > 1])
        self.short = [edge for edge in edges if edge[1] - edge[0] == 1]
        self.margin = (max(self.lanes.values(), default=0) + 2) * _LANE
        self.width = self.margin + _BOX

    def svg(self) -> Iterator[str]:
        """Yield the elements."""
        for (top, bottom), lane in self.lanes.items():
            x = self.margin - (lane + 1) * _LANE
            start, end = top * _ROW + 11, bottom * _ROW + 11
            yield (
                f'<path d="M{self.margin} {start} H{x + 6} Q{x} {start} {x} {start + 6} '
                f'V{end - 6} Q{x} {end} {x + 6} {end} H{self.margin}" '
                'fill="none" stroke="#90a4ae"/>'
            )
        for top, bottom in self.short:
            x = self.margin + 16
            yield (
                f'<path d="M{x} {top * _ROW + 20} V{bottom * _ROW}" stroke="#90a4ae" fill="none"/>'
            )
        for call, row in self.rows.items():
            yield from self._box(call, row * _ROW)

    def _box(self, call: Call, y: int) -> Iterator[str]:
        yield (
            f'<rect x="{self.margin}" y="{y}" width="{_BOX}" height="20" rx="4" '
            f'fill="{_COLOURS[self._kind(call)]}" stroke="#90a4ae"/>'
        )
        shape = "x".join("?" if size is None else str(size) for size in call.outputs[0].shape[1:])
        more = " and a channel of ones" if call.outputs[0].extra else ""
        text = f"{call.name}  ({_type_of(call)})  {shape}{more}"
        yield f'<text x="{self.margin + 8}" y="{y + 14}">{escape(text)}</text>'

    def _kind(self, call: Call) -> str:
        if isinstance(call.op, Source):
            return "input"
        if isinstance(call.op, (AffineOp, MapOp)):
            return self.outcomes.get(call.op.norms[0], "kept")
        if call.name in self.outcomes:
            return self.outcomes[call.name]
        return "absorbs" if call.name in self.absorbers else "plain"


def _type_of(call: Call) -> str:
    op = call.op
    if isinstance(op, Source):
        return "input"
    if isinstance(op, Linear):
        return type(op.layer).__name__
    if isinstance(op, ActivationOp):
        return str(getattr(op.function, "__name__", "activation"))
    if isinstance(op, (AffineOp, MapOp)):
        return " + ".join(remaining_ops(op)) or "nothing"
    return type(op.operation).__name__


def _lanes(edges: Sequence[tuple[int, int]]) -> dict[tuple[int, int], int]:
    """Give each edge the lane nearest to the boxes in which it crosses no other.

    Args:
        edges: Pairs of rows, sorted.

    Returns:
        The lane of each edge, counted from 0 at the boxes.
    """
    ends: list[int] = []
    lanes: dict[tuple[int, int], int] = {}
    for top, bottom in edges:
        lane = next((i for i, end in enumerate(ends) if end <= top), len(ends))
        ends[lane : lane + 1] = [bottom]
        lanes[top, bottom] = lane
    return lanes
