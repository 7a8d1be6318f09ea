"""Mutation testing: plants one small fault at a time in the code, and counts those that tests find.

    python benchmarks/mutants.py [--count 300] [--seed 0] [--only GROUP] [--coverage FOLDER]
                                 [--json FILE]

The tests of each group run once to learn which test runs which lines. Then each mutant of a sample
is loaded in place of its module, in a process forked after the imports of the large libraries, and
the tests that run the mutated line are run, fastest first, until one fails. A mutant that no test
finds is printed with its place and its change. Messages (f-strings, `raise`), strings, annotations
and the modules that draw pictures are not mutated. `--coverage` keeps the record of the first run
in a folder, for another sample of the same code and tests.
"""

from __future__ import annotations

import argparse
import ast
import copy
import hashlib
import importlib.abc
import importlib.machinery
import inspect
import json
import os
import pickle
import random
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from forks import wait

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

ROOT = Path(__file__).parents[1]
_PRELOADED = ("tensorflow", "keras", "onnx", "onnxruntime", "tf2onnx")
_DRAWINGS = ("picture.py", "diagnostics_plot.py")
_LONGEST_S = 180  # of the tests of one mutant, measured while traced, which takes longer
# Tests that start other processes, which do not load the mutant, or take minutes.
_LEFT_OUT = ("test_backends", "test_replicas", "test_applications", "test_random_graphs")


@dataclass(frozen=True)
class Group:
    """Modules, as patterns of paths, and the tests that must find their faults."""

    modules: tuple[str, ...]
    tests: tuple[str, ...]


GROUPS = {
    "toolkit": Group(("toolkit/*.py",), ("tests/toolkit/test_*.py",)),
    "quantize_aware": Group(
        ("toolkit/quantize_aware/*.py",), ("tests/toolkit/quantize_aware/test_*.py",)
    ),
    "fold": Group(
        ("export/fold/*.py", "export/fold/rules/*.py", "export/fold/linear_layers/*.py"),
        ("tests/export/fold/test_*.py",),
    ),
    "judging": Group(
        (
            "reference/noise.py",
            "reference/integer_noise.py",
            "runtime_checks/end_to_end/*.py",
            "runtime_checks/foreign/compar*.py",
        ),
        (
            "tests/runtime_checks/end_to_end/test_*.py",
            "tests/runtime_checks/foreign/test_*.py",
            "tests/runtime_checks/test_parity.py",
            "tests/runtime_checks/test_own_samples.py",
            "tests/runtime_checks/test_one_bad_file.py",
            "tests/reference/test_*.py",
        ),
    ),
}


@dataclass(frozen=True)
class Mutant:
    """One change of a module.

    Attributes:
        module: Path of the module.
        node: Number of the changed node, as `nodes` counts.
        change: Number of the change of that node, as `changes` counts.
        lines: Lines of the statement.
        before: The node as text.
        after: The changed node as text.
    """

    module: str
    node: int
    change: int
    lines: range
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.module}:{self.lines.start}: {self.before}  ->  {self.after}"


@dataclass
class Coverage:
    """The record of one run of the tests.

    Attributes:
        lines: Module and number of each line that a test, a fixture or an import runs.
        seconds: Duration of each test that passed.
        fixtures: Names of the fixtures of each test.
    """

    lines: dict[str, set[tuple[str, int]]] = field(default_factory=lambda: defaultdict(set))
    seconds: dict[str, float] = field(default_factory=dict)
    fixtures: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    def tests_of(self, mutant: Mutant) -> list[str]:
        """Return the tests that run one of a mutant's lines, fastest first.

        A line that runs while the module is imported counts for all tests that run the module.
        """
        places = {(mutant.module, line) for line in mutant.lines}
        found = {key for key, lines in self.lines.items() if lines & places}
        if "import" in found:
            found |= {k for k, ls in self.lines.items() if any(m == mutant.module for m, _ in ls)}
        for name in [key for key in found if key.startswith("fixture ")]:
            found |= {test for test, names in self.fixtures.items() if name[8:] in names}
        return sorted((t for t in found if t in self.seconds), key=lambda t: self.seconds[t])


# The operators that replace an operator.
_SWAPS: dict[type[ast.AST], tuple[type[ast.AST], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div,),
    ast.Div: (ast.Mult,),
    ast.FloorDiv: (ast.Mult,),
    ast.Mod: (ast.Mult,),
    ast.Pow: (ast.Mult,),
    ast.BitOr: (ast.BitAnd,),
    ast.BitAnd: (ast.BitOr,),
    ast.LShift: (ast.RShift,),
    ast.RShift: (ast.LShift,),
    ast.And: (ast.Or,),
    ast.Or: (ast.And,),
}


def changes(node: ast.AST) -> Iterator[ast.AST]:
    """Yield every changed form of one node; its children stay the same."""
    for holder in ("op", "ops"):
        old = getattr(node, holder, None)
        if isinstance(old, list):
            for number, operator in enumerate(old):
                for new in _SWAPS.get(type(operator), ()):
                    yield _with(node, ops=[*old[:number], new(), *old[number + 1 :]])
        elif old is not None and not isinstance(node, ast.UnaryOp):
            for new in _SWAPS.get(type(old), ()):
                yield _with(node, op=new())
    match node:
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            yield operand
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value)):
            yield ast.Constant(value + 1)
        case ast.Constant(value=float(value)):
            yield ast.Constant(2 * value or 1.0)
        case ast.If(test=test) | ast.IfExp(test=test):
            yield _with(node, test=ast.UnaryOp(ast.Not(), test))
        case ast.Expr(value=ast.Call()) | ast.AugAssign():
            yield ast.Pass()
        case ast.Return(value=value) if value is not None and not isinstance(value, ast.Constant):
            yield ast.Return(ast.Constant(None))
        case ast.Continue():
            yield ast.Break()
        case ast.Break():
            yield ast.Continue()


def _with(node: ast.AST, **fields: Any) -> ast.AST:
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


def nodes(tree: ast.AST) -> Iterator[tuple[ast.AST, range]]:
    """Yield the nodes that may be changed, each with the lines of its statement."""

    def walk(node: ast.AST, lines: range) -> Iterator[tuple[ast.AST, range]]:
        if isinstance(node, (ast.JoinedStr, ast.Raise, ast.Assert)) or _names_types(node):
            return
        if isinstance(node, ast.stmt):
            body = getattr(node, "body", None)
            last = body[0].lineno - 1 if isinstance(body, list) else node.end_lineno or node.lineno
            lines = range(node.lineno, max(last, node.lineno) + 1)
        yield node, lines
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from walk(child, lines)

    yield from walk(tree, range(0))


def _names_types(node: ast.AST) -> bool:
    """Whether a statement serves only the type checker."""
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def mutants_of(module: str) -> list[Mutant]:
    """Return every mutant of one module."""
    found = []
    for number, (node, lines) in enumerate(nodes(ast.parse((ROOT / module).read_text()))):
        for change, new in enumerate(changes(node)):
            texts = [_text(n) for n in (node, new)]
            found.append(Mutant(module, number, change, lines, *texts))
    return found


def _text(node: ast.AST) -> str:
    if isinstance(node, ast.If):
        return f"if {ast.unparse(node.test)}"
    return ast.unparse(ast.fix_missing_locations(copy.deepcopy(node))).split("\n")[0]


def mutated(mutant: Mutant) -> ast.Module:
    """Return the syntax tree of a module with one change."""
    tree = ast.parse((ROOT / mutant.module).read_text())
    node = next(n for number, (n, _) in enumerate(nodes(tree)) if number == mutant.node)
    new = list(changes(node))[mutant.change]

    class Replacement(ast.NodeTransformer):
        def visit(self, other: ast.AST) -> ast.AST:
            if other is node:
                return ast.copy_location(new, node)
            return self.generic_visit(other)

    return ast.fix_missing_locations(Replacement().visit(tree))


class _Finder(importlib.abc.MetaPathFinder):
    """Loads one module with the code of a mutant."""

    def __init__(self, mutant: Mutant) -> None:
        dotted = mutant.module.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        self._name, self._mutant = f"renormlite.{dotted}", mutant

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        spec = None
        if name == self._name:
            spec = importlib.machinery.PathFinder.find_spec(name, path)
            tree, origin = mutated(self._mutant), spec.origin
            loader = spec.loader
            loader.get_code = lambda _: compile(tree, origin, "exec", dont_inherit=True)
        return spec


class _Tracer:
    """A plugin of pytest that records which lines each test runs."""

    def __init__(self, modules: list[str], coverage: Coverage) -> None:
        self._files = {str(ROOT / module): module for module in modules}
        self._coverage, self._now = coverage, "import"

    def trace(self, frame: Any, event: str, argument: object) -> Any:
        module = self._files.get(frame.f_code.co_filename)
        if module is None:
            return None
        at_import = not frame.f_code.co_flags & inspect.CO_OPTIMIZED  # of a module or a class

        def lines(frame: Any, event: str, argument: object) -> Any:
            if event == "line":
                key = "import" if at_import else self._now
                self._coverage.lines[key].add((module, frame.f_lineno))
            return lines

        return lines

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._now = nodeid

    def pytest_itemcollected(self, item: Any) -> None:
        self._coverage.fixtures[item.nodeid] = set(item.fixturenames)

    def pytest_runtest_logreport(self, report: Any) -> None:
        seconds = self._coverage.seconds
        seconds[report.nodeid] = seconds.get(report.nodeid, 0.0) + report.duration
        if report.failed or report.skipped:
            seconds[report.nodeid] = float("nan")

    @pytest.hookimpl(hookwrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[None]:
        before, self._now = self._now, f"fixture {fixturedef.argname}"
        yield
        self._now = before


def _pytest(arguments: list[str], plugins: tuple[object, ...] = ()) -> int:
    quiet = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    return int(pytest.main([*quiet, *arguments], plugins=list(plugins)))


def covered(modules: list[str], tests: list[str], folder: Path | None) -> Coverage:
    """Run the tests in another process and return which lines they run.

    With a folder, the record of the same modules and tests is read from it, or else written to it.
    """
    record = None
    if folder is not None:
        text = b"".join(path.encode() + (ROOT / path).read_bytes() for path in [*modules, *tests])
        record = folder / f"{hashlib.sha256(text).hexdigest()}.pickle"
        if record.exists():
            return Coverage(*pickle.loads(record.read_bytes()))

    def run(pipe: int) -> int:
        coverage = Coverage()
        tracer = _Tracer(modules, coverage)
        sys.settrace(tracer.trace)
        threading.settrace(tracer.trace)
        _pytest(tests, (tracer,))
        sys.settrace(None)
        passed = {test: s for test, s in coverage.seconds.items() if s == s}
        with os.fdopen(pipe, "wb") as stream:
            pickle.dump((dict(coverage.lines), passed, dict(coverage.fixtures)), stream)
        return 0

    pipe = os.pipe()
    _, data = _forked(lambda: run(pipe[1]), 7200, pipe)
    if record is not None:
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_bytes(data)
    return Coverage(*pickle.loads(data))


def found_by_tests(mutant: Mutant, tests: list[str]) -> bool:
    """Whether a test fails, or does not end in time, with the mutant in place of its module."""

    def run() -> int:
        sys.meta_path.insert(0, _Finder(mutant))
        return _pytest(["-x", *tests])

    status, _ = _forked(run, 2 * _LONGEST_S)
    return status != 0


def _forked(
    run: Callable[[], int], limit_s: float, pipe: tuple[int, int] | None = None
) -> tuple[int, bytes]:
    """Run a function in a fork of this process; return the wait status and the bytes it wrote."""
    child = os.fork()
    if child == 0:
        os.setsid()
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)
        try:
            os._exit(run())
        except BaseException:
            os._exit(9)
    data = b""
    if pipe is not None:
        os.close(pipe[1])
        with os.fdopen(pipe[0], "rb") as stream:
            data = stream.read()
    status, _, _ = wait(child, limit_s)
    return status, data


def examine(name: str, count: int, seed: int, folder: Path | None = None) -> dict[str, Any]:
    """Test a sample of the mutants of one group; return the counts and the survivors."""
    group = GROUPS[name]
    modules = [str(p.relative_to(ROOT)) for m in group.modules for p in sorted(ROOT.glob(m))]
    modules = [module for module in modules if Path(module).name not in _DRAWINGS]
    tests = [str(p.relative_to(ROOT)) for t in group.tests for p in sorted(ROOT.glob(t))]
    tests = [test for test in tests if not any(word in test for word in _LEFT_OUT)]
    coverage = covered(modules, tests, folder)
    print(
        f"{name}: {len(coverage.seconds)} tests, {sum(coverage.seconds.values()):.0f} s", flush=True
    )
    if not coverage.seconds:
        sys.exit(f"no test of {name} passes")
    mutants = [mutant for module in modules for mutant in mutants_of(module)]
    sample = random.Random(seed).sample(mutants, min(count, len(mutants)))
    totals: Counter[str] = Counter(mutants=len(mutants))
    survivors = []
    for number, mutant in enumerate(sample, 1):
        tests = _affordable(coverage, mutant)
        if tests and found_by_tests(mutant, tests):
            totals["found"] += 1
        else:
            totals["survived"] += 1
            survivors.append(f"{mutant}" + ("" if tests else "  (no test runs it)"))
            print(f"  {survivors[-1]}", flush=True)
        if number % 25 == 0:
            print(f"  {number}: {dict(totals)}", flush=True)
    print(f"{name}: {dict(totals)}", flush=True)
    return {**totals, "survivors": survivors}


def _affordable(coverage: Coverage, mutant: Mutant) -> list[str]:
    """Return the fastest tests of a mutant, as many as fit in the time for one mutant."""
    chosen, spent = [], 0.0
    for test in coverage.tests_of(mutant):
        spent += coverage.seconds[test]
        if chosen and spent > _LONGEST_S:
            break
        chosen.append(test)
    return chosen


def main() -> int:
    """Examine the chosen groups."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=300, help="mutants of each group")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", choices=GROUPS, help="group; repeatable")
    parser.add_argument("--coverage", type=Path, help="folder that keeps the records of coverage")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    folder = options.coverage and options.coverage.resolve()
    os.chdir(ROOT)
    for library in _PRELOADED:
        importlib.import_module(library)
    groups = options.only or GROUPS
    results = {name: examine(name, options.count, options.seed, folder) for name in groups}
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
