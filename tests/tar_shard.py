"""Writes labelled samples as a tar file: one array and one label for each sample."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np


def write_tar_shard(path: Path, images: Iterable[np.ndarray], labels: Iterable[int]) -> Path:
    """Write the samples in their order and return the path."""
    with tarfile.open(path, "w") as archive:
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            array = io.BytesIO()
            np.save(array, image)
            for suffix, content in (("npy", array.getvalue()), ("cls", b"%d" % label)):
                info = tarfile.TarInfo(f"train/{index:05}.{suffix}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path
