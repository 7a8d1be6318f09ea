"""What every test needs: quiet TensorFlow, fixed seeds."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import pytest


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Seed Python, NumPy and the backend before every test, so a failure repeats."""
    import sys

    keras = sys.modules.get("keras")  # only where the test uses Keras: importing it costs seconds
    if keras is not None:
        keras.utils.set_random_seed(0)
