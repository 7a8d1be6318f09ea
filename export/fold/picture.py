"""A picture of a network before and after the fold, as SVG for light and dark pages.

Each call has one row; a layer in both networks has the same row. Edges to the next box go straight
down, all others through lanes on the left.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from html import escape

from .cost import remaining_ops
from .graph import ActivationOp, AffineOp, Call, Graph, MapOp, Source
from .linear import Linear
from .report import FoldReport, NormRecord

_BOX_WIDTH, _BOX, _GAP = 430, 22, 14
_LANE = 14
_MARGIN = 16
_LINE = 14  # of a reason
_NAME_CHAR, _CHAR = 8.2, 7.3  # average width of a character in pixels, in a wide font
_REASON_CHARS = 68
_HEAD_CHARS = 110

_LEGEND = (
    ("folded", "norm that folds completely"),
    ("partly", "norm that folds partly"),
    ("kept", "norm that is kept"),
    ("absorbs", "layer that absorbs a norm"),
    ("plain", "other layer"),
)
_STYLE = """
svg { --page: #ffffff; --ink: #16202b; --soft: #5b6876; --edge: #77859a; --plain: #eef1f5;
  --input: #d5dce4; --absorbs: #cfe4fb; --folded: #cdecd5; --partly: #fdeeb0; --kept: #fbd3d0;
  --bad: #a32016; font: 12px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
@media (prefers-color-scheme: dark) { svg { --page: #0f141a; --ink: #e6ebf1; --soft: #a3b0be;
  --edge: #71808f; --plain: #202a34; --input: #33404d; --absorbs: #173a5e; --folded: #17432b;
  --partly: #4d4210; --kept: #5a211d; --bad: #ff9b8f; } }
text { fill: var(--ink); } .soft { fill: var(--soft); }
.reason { fill: var(--bad); font-size: 11px; }
.title { font-size: 15px; font-weight: 600; } .name { font-weight: 600; }
.box { stroke: var(--edge); stroke-width: .75; }
.edge { stroke: var(--edge); stroke-width: 1.25; fill: none; marker-end: url(#tip); }
.tip { fill: var(--edge); }
.plain { fill: var(--plain); } .input { fill: var(--input); } .absorbs { fill: var(--absorbs); }
.folded { fill: var(--folded); } .partly { fill: var(--partly); } .kept { fill: var(--kept); }
"""


def draw(before: Graph, after: Graph, report: FoldReport) -> str:
    """Draw two graphs side by side.

    Args:
        before: The recognized network before the fold.
        after: The folded network.
        report: The outcome of the norms, which determines colours and reasons.

    Returns:
        An SVG document.
    """
    records = {record.name: record for record in report.records}
    columns = [_Column(before, records, reasons=True), _Column(after, records, reasons=False)]
    rows = _place(*columns)
    heading = [*_sentences(report)]
    top = 2 * _MARGIN + 8 + _LINE * len(heading) + 34 + 26
    width = sum(column.width for column in columns) + 3 * _MARGIN
    height = rows + top + _MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}">',
        f"<style>{_STYLE}</style>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" '
        'markerHeight="6" orient="auto"><path class="tip" d="M0 0L8 4L0 8Z"/></marker></defs>',
        '<rect width="100%" height="100%" fill="var(--page)"/>',
        *_head(heading),
        *_legend(top - 52),
    ]
    left = _MARGIN
    for title, column in zip(("before", "after"), columns, strict=True):
        count = f"{title}: {len(column.calls)} layers"
        parts.append(f'<text class="name" x="{left + column.margin}" y="{top - 12}">{count}</text>')
        parts.append(f'<g transform="translate({left},{top})">')
        parts.extend(column.svg())
        parts.append("</g>")
        left += column.width + _MARGIN
    return "\n".join([*parts, "</svg>", ""])


def _sentences(report: FoldReport) -> Iterator[str]:
    """Yield the title and, if norms stay, the lines that name them."""
    yield report.summary
    names = [record.name for record in report.records if record.outcome != "folded"]
    if names:
        listed = f"Something stays of: {', '.join(names)}."
        yield from textwrap.wrap(listed, _HEAD_CHARS, max_lines=4, placeholder=" …")


def _head(sentences: Sequence[str]) -> Iterator[str]:
    for place, sentence in enumerate(sentences):
        kind = "soft" if place else "title"
        y = _MARGIN + 14 + place * _LINE + (6 if place else 0)
        yield f'<text class="{kind}" x="{_MARGIN}" y="{y}">{escape(sentence)}</text>'


def _legend(y: int) -> Iterator[str]:
    x = _MARGIN
    for kind, text in _LEGEND:
        yield f'<rect class="box {kind}" x="{x}" y="{y}" width="14" height="14" rx="3"/>'
        yield f'<text class="soft" x="{x + 20}" y="{y + 11}">{text}</text>'
        x += 36 + int(6.6 * len(text))


@dataclass(frozen=True)
class _Box:
    """The texts and the colour of the box of a call."""

    name: str
    what: str
    shape: str
    kind: str
    reason: tuple[str, ...] = ()

    @property
    def height(self) -> int:
        """Height of the row, with the reason below the box and the gap."""
        return _BOX + _GAP + _LINE * len(self.reason)


class _Column:
    """One graph: the boxes of its calls in order, and its edges."""

    def __init__(self, graph: Graph, records: dict[str, NormRecord], *, reasons: bool) -> None:
        self.calls = graph.calls()
        absorbers = {layer for record in records.values() for layer in record.into}
        self.boxes = [_box(call, records, absorbers, reasons) for call in self.calls]
        self.tops: list[int] = []
        places = {call: i for i, call in enumerate(self.calls)}
        edges = sorted(
            {(places[v.producer], place) for call, place in places.items() for v in call.inputs}
        )
        self.lanes = _lanes([edge for edge in edges if edge[1] - edge[0] > 1])
        self.straight = [edge for edge in edges if edge[1] - edge[0] == 1]
        self.margin = (max(self.lanes.values(), default=-1) + 1) * _LANE + 8
        self.width = self.margin + _BOX_WIDTH

    def svg(self) -> Iterator[str]:
        """Yield the elements."""
        for (start, end), lane in self.lanes.items():
            x = self.margin - (lane + 1) * _LANE
            y, below = self.tops[start] + _BOX - 5, self.tops[end] + 6
            yield (
                f'<path class="edge" d="M{self.margin} {y} H{x + 6} Q{x} {y} {x} {y + 6} '
                f'V{below - 6} Q{x} {below} {x + 6} {below} H{self.margin}"/>'
            )
        for start, end in self.straight:
            x = self.margin + 18
            yield f'<path class="edge" d="M{x} {self.tops[start] + _BOX} V{self.tops[end]}"/>'
        for box, y in zip(self.boxes, self.tops, strict=True):
            yield from self._draw(box, y)

    def _draw(self, box: _Box, y: int) -> Iterator[str]:
        room = _BOX_WIDTH - 48 - _CHAR * len(box.shape)
        name = _shortened(box.name, max(18, int((room - _CHAR * len(box.what)) / _NAME_CHAR)))
        what = _shortened(box.what, max(8, int((room - _NAME_CHAR * len(name)) / _CHAR)))
        told = escape(" ".join([f"{box.name}  {box.what}  {box.shape}", *box.reason]))
        yield (
            f'<rect class="box {box.kind}" x="{self.margin}" y="{y}" width="{_BOX_WIDTH}" '
            f'height="{_BOX}" rx="5"><title>{told}</title></rect>'
        )
        yield (
            f'<text x="{self.margin + 10}" y="{y + 15}"><tspan class="name">{escape(name)}</tspan>'
            f'<tspan class="soft" dx="8">{escape(what)}</tspan></text>'
        )
        yield (
            f'<text class="soft" x="{self.margin + _BOX_WIDTH - 10}" y="{y + 15}" '
            f'text-anchor="end">{escape(box.shape)}</text>'
        )
        for place, line in enumerate(box.reason):
            yield (
                f'<text class="reason" x="{self.margin + 30}" '
                f'y="{y + _BOX + 12 + place * _LINE}">{escape(line)}</text>'
            )


def _place(before: _Column, after: _Column) -> int:
    """Set the tops of all boxes, with a layer of both graphs in one row; return the height."""
    matcher = SequenceMatcher(
        None, [box.name for box in before.boxes], [box.name for box in after.boxes], autojunk=False
    )
    y = 0
    for _, start, end, other, last in matcher.get_opcodes():
        for row in range(max(end - start, last - other)):
            heights = []
            for column, place, stop in ((before, start + row, end), (after, other + row, last)):
                if place < stop:
                    column.tops.append(y)
                    heights.append(column.boxes[place].height)
            y += max(heights)
    return y


def _box(call: Call, records: dict[str, NormRecord], absorbers: set[str], reasons: bool) -> _Box:
    """Return the box of a call."""
    shape = " x ".join("?" if size is None else str(size) for size in call.outputs[0].shape[1:])
    shape += " + a channel of ones" * bool(call.outputs[0].extra)
    if isinstance(call.op, Source):
        return _Box(call.name, "input", shape, "input")
    name = call.op.norms[0] if isinstance(call.op, (AffineOp, MapOp)) else call.name
    record = records.get(name)
    if record is None:
        kind = "absorbs" if call.name in absorbers else "plain"
        return _Box(call.name, _type_of(call), shape, kind)
    what = f"→ {', '.join(record.into)}" if reasons and record.into else _type_of(call)
    reason = tuple(textwrap.wrap(record.reason, _REASON_CHARS)) if reasons else ()
    return _Box(call.name, what, shape, record.outcome.split()[0], reason)


def _shortened(text: str, length: int) -> str:
    """Return text of at most `length` characters, with the middle left out if it is longer."""
    if len(text) <= length:
        return text
    kept = length - 1
    return f"{text[: kept // 2]}…{text[len(text) - (kept - kept // 2) :]}"


def _type_of(call: Call) -> str:
    op = call.op
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
