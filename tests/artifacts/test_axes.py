"""Protects the sentences on axes in another order: each says which transposition mends it."""

from __future__ import annotations

import re
import shutil

import keras
import numpy as np
import pytest
import renormlite as rl
from keras import layers
from renormlite.artifacts.axes import transposition


@pytest.mark.parametrize(
    ("shape", "wanted", "axes"),
    [
        ((8, 3, 6, 6), (None, 6, 6, 3), (0, 2, 3, 1)),
        ((8, 6, 6, 3), (1, 3, 6, 6), (0, 3, 1, 2)),
        ((8, 40, 10), (None, 10, 40), (0, 2, 1)),
        ((8, 4, 3, 6, 5), (None, 3, 6, 5, 4), (0, 2, 3, 4, 1)),
        ((8, 5, 6, 3), (None, 6, 5, 3), (0, 2, 1, 3)),
        ((8, 3, 6, 6), (None, None, None, 3), (0, 2, 3, 1)),
        ((8, 6, 6, 3), (None, 6, 6, 3), None),
        ((8, 6, 6, 3), (None, 6, 6, 4), None),
        ((8, 6, 3), (None, 6, 6, 3), None),
        ((8, 6), (None, 6), None),
    ],
)
def test_the_order_of_axes(shape, wanted, axes):
    assert transposition(shape, wanted) == axes
    if axes is not None:
        turned = np.transpose(np.zeros(shape), axes).shape
        assert all(want in (None, size) for want, size in zip(wanted[1:], turned[1:], strict=True))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The same model with channels last and first."""
    keras.utils.set_random_seed(0)
    image = keras.Input((6, 6, 3), name="image")
    model = keras.Model(image, layers.Dense(4)(layers.Flatten()(layers.Conv2D(4, 3)(image))))
    folder = tmp_path_factory.mktemp("layouts")
    for layout in ("nhwc", "nchw"):
        rl.export_model(model, folder / layout / "net", formats=("onnx",), layout=layout)
    return folder


def test_own_samples_with_channels_first(folders):
    samples = np.zeros((4, 3, 6, 6), np.float32)
    with pytest.raises(rl.UserError, match=r"transpose them by \(0, 2, 3, 1\)"):
        rl.check_parity(folders / "nhwc" / "net", inputs={"image": samples})


@pytest.mark.parametrize(
    ("mine", "other", "axes"),
    [("nhwc", "nchw", r"\(0, 3, 1, 2\)"), ("nchw", "nhwc", r"\(0, 2, 3, 1\)")],
)
def test_a_file_with_channels_elsewhere(folders, tmp_path, mine, other, axes):
    shutil.copytree(folders / mine / "net", tmp_path / "net")
    shutil.copy(folders / other / "net" / "net.float32.onnx", tmp_path / "net")
    (result,) = rl.check_parity(tmp_path / "net").results
    pattern = rf"axes of input 'image' are in another order: transpose .* fed by {axes}"
    assert any(re.search(pattern, finding.message) for finding in result.findings)
