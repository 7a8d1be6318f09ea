"""Settings and fixtures of all tests: quiet TensorFlow, fixed seeds, small exports."""

import contextlib
import json
import os
import shutil
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from renormlite.locks import run_folder
from stock_converter import converter_of

# On a busy machine any test may be slow.
settings.register_profile("any_load", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any_load")


def pytest_configure(config: pytest.Config) -> None:
    """Put temporary files into a folder that is removed at the end, but those of `tmp_path`.

    The workers of pytest-xdist end without the clean-up of TensorFlow, which leaves files.
    """
    if not hasattr(config, "workerinput"):
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
        stack = contextlib.ExitStack()
        stack.enter_context(run_folder())
        config.add_cleanup(stack.close)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Seed Python, NumPy and the backend before every test, so a failure repeats."""
    import sys

    keras = sys.modules.get("keras")  # only where the test uses Keras: importing it costs seconds
    if keras is not None:
        keras.utils.set_random_seed(0)


def build_network():
    """Build a small network: a strided, a depthwise, a pointwise and a dense layer."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(7)
    image = keras.Input((8, 8, 1), name="image")
    x = layers.Conv2D(6, 3, padding="same", activation="relu", name="stem")(image)
    x = layers.Conv2D(8, 3, strides=2, padding="same", name="down")(x)
    x = layers.ReLU(name="down_relu")(x)
    x = layers.DepthwiseConv2D(3, padding="same", activation="relu", name="depth")(x)
    x = layers.Conv2D(8, 1, activation="relu", name="point")(x)
    x = layers.Flatten(name="flat")(x)
    scores = layers.Dense(10, activation="softmax", name="scores")(x)
    model = keras.Model(image, scores, name="tiny")
    rng = np.random.default_rng(3)
    for variable in model.weights:
        variable.assign(rng.normal(0, 0.4, variable.shape))
    return model


def write_export(directory: Path) -> None:
    """Write the files of an export of this network, converted by the stock converters."""
    import keras
    import renormlite
    import tensorflow as tf
    import tf2onnx
    from renormlite.files import sha256

    model = build_network()
    config = model.get_config()
    keras.backend.set_floatx("float64")
    try:
        twin = keras.Model.from_config(
            json.loads(json.dumps(config).replace('"float32"', '"float64"'))
        )
    finally:
        keras.backend.set_floatx("float32")
    twin.set_weights([np.asarray(w, np.float64) for w in model.get_weights()])

    rng = np.random.default_rng(11)
    x = np.concatenate(
        [
            rng.normal(size=(12, 8, 8, 1)),
            np.zeros((1, 8, 8, 1)),
            1e3 * rng.normal(size=(3, 8, 8, 1)),
        ]
    ).astype(np.float32)
    kind = np.array(["random"] * 12 + ["border"] + ["extreme"] * 3)

    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tiny.float32.tflite").write_bytes(converter_of(model).convert())
    tf2onnx.convert.from_keras(
        model,
        input_signature=[tf.TensorSpec((1, 8, 8, 1), tf.float32, name="image")],
        output_path=str(directory / "tiny.float32.onnx"),
    )
    truth = np.asarray(twin(x.astype(np.float64)))
    np.savez(
        directory / "golden.npz",
        **{
            "kind": kind,
            "input:image": x,
            "truth:scores": truth,
            "folded64:scores": truth,
            "reference:scores": np.asarray(model(x)),
        },
    )
    from renormlite.export.network.write import write_network

    write_network(model, directory / "network.npz")

    def hashed(file: str) -> dict[str, str]:
        return {"file": file, "sha256": sha256(directory / file)}

    def tensor(name: str, shape: list, keras_name: str) -> dict:
        return {"name": name, "shape": shape, "dtype": "float32", "keras_name": keras_name}

    from renormlite.runtimes import runner_class

    artifacts = []
    for suffix, runtime in (("tflite", "litert"), ("onnx", "onnxruntime")):
        file = f"tiny.float32.{suffix}"
        with runner_class(runtime)(directory / file) as runner:
            names = runner.inputs[0].name, runner.outputs[0].name
        artifacts.append(
            {
                **hashed(file),
                "format": suffix,
                "precision": "float32",
                "bytes": (directory / file).stat().st_size,
                "ops": {},
                "inputs": [tensor(names[0], [1, 8, 8, 1], "image")],
                "outputs": [tensor(names[1], [1, 10], "scores")],
            }
        )
    manifest = {
        "schema": "renormlite/manifest/1",
        "name": "tiny",
        "created_by": f"renormlite {renormlite.__version__}",
        "source": {"model_name": "tiny", "sha256": None},
        "versions": {"tensorflow": tf.__version__},
        "options": {},
        "inputs": [tensor("image", [None, 8, 8, 1], "image")],
        "outputs": [tensor("scores", [None, 10], "scores")],
        "fold": {"records": [], "proof": {}},
        "golden": hashed("golden.npz"),
        "network": hashed("network.npz"),
        "artifacts": artifacts,
    }
    (directory / "manifest.json").write_text(json.dumps(manifest, indent=1))


@pytest.fixture(scope="session", name="build_network")
def network_builder():
    """The function that builds the network, for exports of other precisions."""
    return build_network


@pytest.fixture(scope="session")
def healthy_export(tmp_path_factory) -> Path:
    """An export; tests must not change it."""
    directory = tmp_path_factory.mktemp("export") / "tiny"
    write_export(directory)
    return directory


@pytest.fixture
def export(healthy_export, tmp_path) -> Path:
    """A copy of the export, which a test may damage."""
    return Path(shutil.copytree(healthy_export, tmp_path / "tiny"))


@pytest.fixture(scope="session")
def coarse_export(tmp_path_factory) -> Path:
    """An export of the same network in every precision; tests must not change it."""
    import renormlite as rl

    x = np.random.default_rng(5).normal(size=(32, 8, 8, 1)).astype(np.float32)
    directory = tmp_path_factory.mktemp("coarse") / "tiny"
    rl.export_model(
        build_network(),
        directory,
        precisions=("float32", "float16", "dynamic", "int8"),
        calibration=x,
        inputs=x[:8],
    )
    return directory


@pytest.fixture
def images() -> np.ndarray:
    """Smooth images: neighbouring pixels correlate as in photographs, (48, 12, 12, 3) in [0, 1]."""
    generator = np.random.default_rng(1)
    phase = generator.uniform(0, 6, (48, 1, 1, 3))
    speed = generator.uniform(0.2, 0.6, (48, 1, 1, 3))
    rows, columns = np.mgrid[:12, :12][:, None, :, :, None]
    return (0.5 + 0.5 * np.sin(speed * (rows + 2 * columns) + phase)).astype(np.float32)
