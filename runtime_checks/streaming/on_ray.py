"""Judges parts of the samples on the machines of a Ray cluster.

Each machine needs renormlite, the runtimes of the check, and the same type of processor, since
float kernels may round differently on others. The export is sent as bytes, so no shared file system
is needed.
"""

from __future__ import annotations

import dataclasses
import logging
import socket
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...extras import missing_package
from ...files import write_bytes
from .part import Job, Part, judge_part
from .totals import FileTotals
from .workers import in_order

# How often Ray gives a part to another worker after its worker has died.
_RETRIES = 3

_ANSWERS_WITHIN = 10.0  # seconds, for the head of a cluster

# The export of the last job in a worker process, by its digest; it is removed with the process.
_unpacked: dict[str, tempfile.TemporaryDirectory[str]] = {}


def on_ray(job: Job, parts: Iterable[Part], address: str) -> Iterator[tuple[FileTotals, ...]]:
    """Yield the totals of each part, in order.

    Args:
        job: The check.
        parts: The samples.
        address: Address of the cluster; "auto" for the cluster of this machine, "local" to start
            one here.

    Raises:
        UserError: Ray is not installed, or there is no cluster at the address.
    """
    try:
        import ray
    except ImportError as error:
        raise missing_package(error, "`--ray`") or error from error
    files = {path.name: path.read_bytes() for path in job.directory.iterdir() if path.is_file()}
    started = not ray.is_initialized()
    if started:
        try:
            _connect(address)
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, ValueError, OverflowError, RuntimeError) as error:
            raise UserError(f"There is no Ray cluster at {address!r} ({error}).") from error
    try:
        export = ray.put(files)
        remote: Any = ray.remote(max_retries=_RETRIES)(_judge)
        get: Any = ray.get
        most = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
        try:
            yield from in_order(lambda part: remote.remote(export, job, part), get, parts, most)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise UserError(str(error.cause)) from error
            raise
        except ray.exceptions.RayError as error:
            raise UserError(f"Ray could not judge a part of the samples: {error}") from error
    finally:
        if started:
            ray.shutdown()


def _connect(address: str) -> None:
    """Connect to HOST:PORT once, since Ray retries for minutes; other addresses name none.

    Raises:
        OSError: Nothing answers there.
        OverflowError: There is no such port.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), _ANSWERS_WITHIN).close()


def _judge(files: Mapping[str, bytes], job: Job, part: Part) -> tuple[FileTotals, ...]:
    if job.digest not in _unpacked:
        folder = tempfile.TemporaryDirectory(prefix="renormlite-")
        for name, data in files.items():
            write_bytes(Path(folder.name) / name, data)
        _unpacked.clear()
        _unpacked[job.digest] = folder
    return judge_part(dataclasses.replace(job, directory=Path(_unpacked[job.digest].name)), part)
