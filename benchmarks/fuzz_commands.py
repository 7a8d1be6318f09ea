"""Random commands with bad options, files and surroundings.

    python benchmarks/fuzz_commands.py [--count 1000] [--seed 0] [--json FILE]

Every command line is drawn from the parameters that the commands declare, with valid and invalid
values, healthy and altered files, odd names, and defaults in a pyproject.toml. Some commands have a
limit on the size of files, as on a full disk, read-only folders, a standard output that is closed
or full, or odd environment variables. A command must end within its time with exit code 0, 1 or 2,
without a traceback or control characters in its output, and leave no temporary or incomplete file.
Each command runs in a process forked after the imports. Prints every command that ends otherwise;
the exit code is then 1.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import ctypes
import fcntl
import importlib
import io
import json
import os
import random
import resource
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import click
from forks import wait
from renormlite.cli.output_file import OutputFile
from renormlite.locks import run_folder

_LONGEST_S = 30.0  # of processor time; a healthy export of the small network takes ten
_HUNG_S = 120.0  # elapsed, on a busy machine
_LARGEST_GB = 2.0
_LARGEST_OUTPUT = 1 << 20  # bytes
_PRELOADED = ("numpy", "tensorflow", "keras", "onnx", "onnxruntime", "pyarrow.parquet")

# Training and downloads take minutes. They run with the values that end them early only.
_ONLY_INVALID = {"train": "name", "device setup": "kinds"}

# Values with which the commands do their work, by the names of parameters.
_FILES = ("tiny/tiny.int8.tflite", "tiny/tiny.int8.onnx", "tiny/tiny.float32.tflite")
_SAMPLES = tuple(f"samples.{suffix}" for suffix in ("npz", "npy", "tar", "parquet"))
_HEALTHY = {
    "model": ("tiny.keras",),
    "directory": ("tiny",),
    "paths": ("tiny", *_FILES),
    "file": ("tiny.pyz", *_FILES),
    "a": _FILES,
    "b": _FILES,
    "reports": ("report.json",),
    "baseline": ("report.json",),
    "inputs": _SAMPLES,
    "calibration": _SAMPLES,
    "on": ("litert", "onnxruntime", "litert,onnxruntime"),
    "shape": ("image=12,12,3", "12,12,3"),
}

_TEXTS = (
    *("", " ", ",", "x", "..", "x=y", "=", "image=image", "float32", "int8", "float32,int8"),
    *("litert", "litert,onnxruntime", "litert@qemu", "onnxruntime@x", "[/red]", "\x1b[31mred"),
    *("a\nb", "\udce9", "x" * 300, "%s{0}", "0.0,1.0", "nan", "tflite", "conv", "json:dumps", "os"),
)
_NUMBERS = ("0", "1", "2", "-1", "0.5", "nan", "inf", "1e308", "99999999999", "²", "1_0", "", "x")
_NAMES = (
    *("", ".", "..", "/", "/dev/full", "/dev/null", "-", "no/such", "new", "new/below", "~"),
    *("n" * 300, "a\nb", "\x1b[31mred", "[/red]", "\udce9.json", "--json", "tiny", "folder"),
    *("empty.tflite", "empty.onnx", "new.json", "new.html", "new.xml", "new.keras", "new.pyz"),
    *("new.svg", "no/such/new.json", "folder/new.json", "readonly/new.json", "readonly/new.html"),
)
_TABLES = ("[tool.renormlite]\n{}", "[tool.renormlite.check]\n{}", "[tool]\nrenormlite = 1", "[")
_ENTRIES = ('on = ["litert"]', "on = 1", "json = []", "samples = 1e999", "x = 1", 'mean = "nan"')
_VARIABLES = {
    "COLUMNS": ("0", "-5", "x", "1", "99999"),
    "TERM": ("", "dumb", "\x1b"),
    "TMPDIR": ("no/such", "readonly"),
    "XDG_CACHE_HOME": ("no/such", "readonly", ""),
    "HOME": ("", "no/such"),
    "KERAS_BACKEND": ("x", ""),
    "FORCE_COLOR": ("1",),
}


@dataclass
class Case:
    """One command and its surroundings.

    Attributes:
        arguments: Words of the command line, with the name of the command.
        output: Kind of standard output: "pipe", "left" (a pipe without a reader), "full", "closed".
        limit: Largest size of a file in bytes; None for no limit.
        encoding: Encoding of standard output.
        variables: Environment variables.
        defaults: Text of pyproject.toml; empty for no such file.
    """

    arguments: list[str]
    output: str = "pipe"
    limit: int | None = None
    encoding: str = "utf-8"
    variables: dict[str, str] = field(default_factory=dict)
    defaults: str = ""


def commands() -> dict[str, click.Command]:
    """Return all commands by name; the name of a group's command starts with that of the group."""
    from renormlite.cli.main import COMMANDS, cli

    found: dict[str, click.Command] = {}
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        if isinstance(command, click.Group):
            found |= {f"{name} {below}": c for below, c in command.commands.items()}
        elif command is not None:
            found[name] = command
    return found


def random_case(rng: random.Random, known: dict[str, click.Command], files: list[str]) -> Case:
    """Return a random command; about a third of all have only valid values."""
    name = rng.choice(list(known))
    case, valid = Case(name.split()), rng.random() < 0.35
    options = [p for p in known[name].params if isinstance(p, click.Option) and p.expose_value]
    for option in rng.sample(options, min(len(options), rng.choice((0, 1, 1, 2, 3, 5)))):
        case.arguments.append(rng.choice(option.opts))
        if not option.is_flag:
            case.arguments.append(_value(rng, option, files, valid))
    for argument in known[name].params:
        if isinstance(argument, click.Argument) and (valid or rng.random() > 0.03):
            for _ in range(1 if argument.nargs == 1 else rng.choice((1, 1, 2))):
                early = _ONLY_INVALID.get(name) == argument.name
                text = rng.choice(_TEXTS) if early else _value(rng, argument, files, valid)
                case.arguments.append(text)
    if rng.random() < 0.15:
        case.output = rng.choice(("left", "full", "closed"))
    if rng.random() < 0.15:
        case.limit = rng.choice((0, 100, 4096, 100_000))
    if rng.random() < 0.05:
        case.encoding = "ascii"
    if rng.random() < 0.15:
        variable = rng.choice(list(_VARIABLES))
        case.variables[variable] = rng.choice(_VARIABLES[variable])
    if rng.random() < 0.1:
        case.defaults = rng.choice(_TABLES).format(rng.choice(_ENTRIES))
    return case


def _value(rng: random.Random, parameter: click.Parameter, files: list[str], valid: bool) -> str:
    """Return a random value of a parameter's type, or of another type if it need not be valid."""
    kind = parameter.type
    if not valid and rng.random() < 0.15:
        return rng.choice((*_TEXTS, *_NUMBERS, *_NAMES))
    if isinstance(kind, click.Choice):
        return str(rng.choice(kind.choices))
    if isinstance(kind, OutputFile):
        return f"new{kind._suffix}" if valid else rng.choice((*_NAMES, *files))
    if parameter.name in _HEALTHY and (valid or rng.random() < 0.3):
        return rng.choice(_HEALTHY[parameter.name])
    if isinstance(kind, click.Path):
        return "new.json" if valid else rng.choice((*_NAMES, *files))
    if isinstance(kind, (click.IntRange, click.FloatRange)) and valid:
        return str(rng.choice((kind.min or 0, (kind.min or 0) + 1)))
    if isinstance(kind, (type(click.INT), type(click.FLOAT))):
        return rng.choice(("0", "1", "2") if valid else _NUMBERS)
    listed = getattr(kind, "_known", None)
    return rng.choice(tuple(listed) if listed and (valid or rng.random() < 0.5) else _TEXTS)


def write_template(folder: Path) -> None:
    """Write a healthy and an altered file of every kind, and folders."""
    import hostile
    from healthy_files import write_healthy_files

    folder.mkdir()
    for name, path in write_healthy_files(folder).items():
        altered = next(hostile.inputs(hostile.PARSERS[name], path.read_bytes(), 0))
        path.with_name(f"altered{path.suffix}").write_bytes(altered)
    for name in ("folder", "readonly"):
        (folder / name).mkdir()
    for suffix in ("tflite", "onnx"):
        (folder / f"empty.{suffix}").touch()


class Workplace:
    """A folder with healthy and altered files, copied anew for each command."""

    def __init__(self, folder: Path) -> None:
        self.template, self.folder = folder / "template", folder / "work"
        self.temporary, self.home = folder / "temporary", folder / "home"
        child = os.fork()  # TensorFlow, which writes the files, must not run before other forks
        if child == 0:
            with run_folder():
                write_template(self.template)
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            raise RuntimeError("the healthy files could not be written")
        paths = [p for p in sorted(self.template.rglob("*")) if p.is_file()]
        self.files = [str(path.relative_to(self.template)) for path in paths]

    @contextlib.contextmanager
    def prepared(self, case: Case) -> Iterator[None]:
        """Copy the folder for one command, and remove it afterwards."""
        shutil.copytree(self.template, self.folder)
        self.temporary.mkdir()
        (self.folder / "readonly").chmod(0o555)
        if case.defaults:
            (self.folder / "pyproject.toml").write_text(case.defaults)
        try:
            yield
        finally:
            (self.folder / "readonly").chmod(0o755)
            shutil.rmtree(self.folder)
            shutil.rmtree(self.temporary)

    def left_behind(self) -> str:
        """Describe a file that a command should have removed; empty if there is none."""
        for path in self.temporary.iterdir():
            return f"temporary file {path.name}"
        known = {path.relative_to(self.template) for path in self.template.rglob("*")}
        for path in self.folder.rglob("*"):
            below = path.relative_to(self.folder)
            if below not in known and path.name.startswith((".", "tmp")):
                return f"temporary file {below}"
            if below not in known and path.suffix == ".json" and path.is_file():
                try:
                    json.loads(path.read_bytes())
                except ValueError:
                    return f"incomplete file {below}"
        return ""


def run(case: Case, place: Workplace) -> tuple[str, float, float]:
    """Run one command; return its fault, the processor time in seconds and the memory in GB."""
    with place.prepared(case):
        reading, writing = os.pipe()
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, _LARGEST_OUTPUT)
        child = os.fork()
        if child == 0:
            try:
                _become(case, place, writing)
                os._exit(_exit_code())
            finally:
                os._exit(99)
        status, usage, hung = wait(child, _HUNG_S)
        os.close(writing)
        os.set_blocking(reading, False)
        with os.fdopen(reading, "rb") as stream:
            text = stream.read() or b""
        left = place.left_behind()
    seconds, memory = usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e6
    code = os.waitstatus_to_exitcode(status)
    if hung or seconds > _LONGEST_S:
        return f"hung: {seconds:.1f} s of processor time", seconds, memory
    if memory > _LARGEST_GB:
        return f"took {memory:.1f} GB", seconds, memory
    return _fault(case, code, text) or left, seconds, memory


def _fault(case: Case, code: int, text: bytes) -> str:
    """Describe the fault of a command's exit code or output; empty if there is none."""
    output = text.decode(case.encoding, errors="replace")
    last = output.strip().splitlines()[-1][-400:] if output.strip() else ""
    if code not in (0, 1, 2) or "Traceback (most recent" in output or "Exception ignored" in output:
        return f"exit {code}: {last}"
    if code == 2 and not last:
        return "exit 2 without a word"
    raw = {c for c in output if ord(c) < 32 and c not in "\n\t"}
    if raw and "FORCE_COLOR" not in case.variables:
        return f"control characters {sorted(raw)!r}: {last!r}"
    return ""


def _become(case: Case, place: Workplace, stream: int) -> None:
    """Turn this forked process into the command, as if it had been started anew."""
    os.setsid()
    os.chdir(place.folder)
    os.environ.update(
        HOME=str(place.home), XDG_CACHE_HOME="", TMPDIR=str(place.temporary), COLUMNS="100"
    )
    os.environ.update(case.variables)
    tempfile.tempdir = None
    reading, left = os.pipe()
    os.close(reading)
    outputs = {"left": left, "full": os.open("/dev/full", os.O_WRONLY)}
    os.dup2(outputs.get(case.output, stream), 1)
    os.dup2(stream, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    _obey_permissions()
    if case.limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (case.limit, case.limit))
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), case.encoding)
    sys.stderr = io.TextIOWrapper(
        io.FileIO(2, "w", closefd=False), case.encoding, "backslashreplace"
    )
    sys.stderr.reconfigure(line_buffering=True)
    if case.output == "closed":
        os.close(1)
        sys.stdout = None
    sys.argv = ["renormlite", *case.arguments]


def _exit_code() -> int:
    """Run the command and the work of Python at exit; return the exit code."""
    from renormlite.__main__ import main

    code = 0
    try:
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        print(f"Exception ignored in: standard output {error}", file=sys.stderr)
        code = 120
    sys.stderr.flush()
    return code


def _obey_permissions() -> None:
    """Give up root's right to write into read-only folders, also for processes started later."""
    libc = ctypes.CDLL(None, use_errno=True)
    if os.getuid() or sys.platform != "linux":
        return
    drop, override, version = 24, 1, 0x20080522  # PR_CAPBSET_DROP, CAP_DAC_OVERRIDE
    libc.prctl(drop, override, 0, 0, 0)
    header, sets = (ctypes.c_uint32 * 2)(version, 0), (ctypes.c_uint32 * 6)()
    libc.capget(header, sets)
    for number in range(3):
        sets[number] &= ~(1 << override)
    libc.capset(header, sets)


def main() -> int:
    """Run the requested number of commands."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--verbose", action="store_true", help="print every command")
    options = parser.parse_args()
    known = commands()
    totals: Counter[str] = Counter()
    longest = largest = 0.0
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))  # no finalizer, which the forks would run
    try:
        place = Workplace(folder)
        for module in _PRELOADED:
            importlib.import_module(module)
        for number in range(options.seed, options.seed + options.count):
            case = random_case(random.Random(number), known, place.files)
            wrong, seconds, memory = run(case, place)
            longest, largest = max(longest, seconds), max(largest, memory)
            totals["commands"] += 1
            if wrong:
                totals["wrong"] += 1
                print(f"{number}: {wrong}\n    {case}", flush=True)
            elif options.verbose:
                print(f"{number}: {seconds:.1f} s {case}", flush=True)
    finally:
        shutil.rmtree(folder)
    print(f"{dict(totals)}, longest {longest:.1f} s, {largest:.1f} GB")
    if options.json:
        record = {**totals, "longest_s": longest, "peak_gb": largest}
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    return 1 if totals["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
