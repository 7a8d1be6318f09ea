"""Replaces one export by another and kills itself before the n-th change to the disk, for every n.

Prints one JSON line an n: what was found in the directory after the kill, and what after the next
export has begun. Run by test_staging.py in a process of its own, which has no threads and may fork.
"""

import contextlib
import hashlib
import itertools
import json
import os
import signal
import sys
from pathlib import Path

from renormlite.artifacts.manifest import Artifact, FileRecord, Manifest
from renormlite.export.staging import moved_in_when_done
from renormlite.files import hash_folder, sha256

CHANGES = {"os.chmod", "os.chown", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir"}
CHANGES |= {"os.utime", "shutil.copytree", "shutil.rmtree"}
FILES = {"old": ("net.tflite", "gone.onnx", "gone.saved_model"), "new": ("net.tflite", "come.onnx")}


def write(folder: Path, generation: str) -> None:
    """Write an export whose every file holds the name of its generation."""
    for name in ("golden.npz", "network.npz", *FILES[generation]):
        path = folder / name
        if path.suffix == ".saved_model":
            path.mkdir()
            path = path / "graph.pb"
        path.write_text(generation)
    artifacts = [
        Artifact(name, "tflite", "float32", _hash(folder / name), 1, {}, (), ())
        for name in FILES[generation]
    ]
    golden, network = (FileRecord.of(folder / f"{name}.npz") for name in ("golden", "network"))
    Manifest(
        name=generation,
        created_by="",
        source={},
        inputs=(),
        outputs=(),
        golden=golden,
        network=network,
        artifacts=tuple(artifacts),
    ).write(folder)


def _hash(path: Path) -> str:
    if path.is_dir():
        return hashlib.sha256(json.dumps(hash_folder(path)).encode()).hexdigest()
    return sha256(path)


def found(folder: Path) -> str:
    """Return `old` or `new` where the directory holds just that and the user's files."""
    manifest = Manifest.load(folder)
    records = {a.file: a.sha256 for a in manifest.artifacts}
    records |= {r.file: r.sha256 for r in (manifest.golden, manifest.network)}
    wrong = [name for name, digest in records.items() if not _matches(folder / name, digest)]
    own = (folder / "notes.txt").read_text() + (folder / "logs" / "today.txt").read_text()
    seen = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    extra = seen - set(records) - {"manifest.json", "notes.txt", "logs"}
    whole = not wrong and not extra and own == "mine"
    return manifest.name if whole else f"{manifest.name}: wrong {wrong}, extra {extra}, own {own}"


def _matches(path: Path, digest: str) -> bool:
    return path.exists() and _hash(path) == digest


def replace(folder: Path, inside: bool, fatal: int) -> bool:
    """Replace the old export by the new one in a child process; tell whether it was killed."""
    child = os.fork()
    if child:
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])
    if inside:
        os.chdir(folder)
    changes = itertools.count()

    def kill(event: str, arguments: object) -> None:
        if event in CHANGES and next(changes) == fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    with moved_in_when_done(folder) as staging:
        write(staging, "new")
        sys.addaudithook(kill)
    os._exit(0)


def main() -> None:
    root, inside = Path(sys.argv[1]), sys.argv[2] == "inside"
    for fatal in itertools.count():
        folder = root / str(fatal) / "net"
        (folder / "logs").mkdir(parents=True)
        (folder / "notes.txt").write_text("mi")
        (folder / "logs" / "today.txt").write_text("ne")
        write(folder, "old")
        killed = replace(folder, inside, fatal)
        at_once = found(folder)
        with contextlib.suppress(KeyboardInterrupt), moved_in_when_done(folder):
            raise KeyboardInterrupt
        print(json.dumps({"killed": killed, "at_once": at_once, "next": found(folder)}))
        if not killed:
            break


if __name__ == "__main__":
    main()
