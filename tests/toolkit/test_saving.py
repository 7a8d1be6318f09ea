"""Protects loading: a saved model loads in a new process, and a bad file gives one clear line."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
import renormlite as rl


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = keras.Sequential([keras.Input((4,)), rl.BatchRenormalization()])
    model.save(tmp_path / "model.keras")
    return tmp_path / "model.keras"


@pytest.mark.parametrize(
    "program",
    [
        "import renormlite as rl; rl.load_model(PATH)",
        "import keras, renormlite; keras.models.load_model(PATH)",
    ],
)
def test_a_saved_model_loads_in_a_new_process(program: str, saved: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", program.replace("PATH", repr(str(saved)))],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr


def test_the_loaded_model_has_the_same_outputs(saved: Path) -> None:
    x = np.ones((2, 4), np.float32)
    before = keras.models.load_model(saved).predict(x, verbose=0)
    np.testing.assert_array_equal(rl.load_model(saved).predict(x, verbose=0), before)


def test_the_message_for_a_missing_file_says_how_to_save_one(tmp_path: Path) -> None:
    with pytest.raises(rl.UserError, match=r"no\.keras, which does not exist\. Save the trained"):
        rl.load_model(tmp_path / "no.keras")


def damaged(data: bytes, how: str) -> bytes:
    """Return the bytes of a truncated file, or of one with changed bits in one place."""
    if how == "cut":
        return data[: len(data) // 3]
    place = data.find(b"PK\x01\x02") - 40 if how == "end" else len(data) // 3
    return (
        data[:place] + bytes(255 - byte for byte in data[place : place + 40]) + data[place + 40 :]
    )


@pytest.mark.parametrize("how", ["cut", "middle", "end"])
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_damaged_file_is_refused_in_one_sentence(
    suffix: str, how: str, saved: Path, tmp_path: Path
) -> None:
    undamaged = tmp_path / f"whole{suffix}"
    rl.load_model(saved).save(undamaged)
    path = tmp_path / f"damaged{suffix}"
    path.write_bytes(damaged(undamaged.read_bytes(), how))
    message = ""
    try:
        rl.load_model(
            path
        )  # bits of a weight may flip unseen in an .h5 file, which has no checksum
    except rl.UserError as error:
        message = str(error)
    assert "\n" not in message
    if how == "cut" or suffix == ".keras":
        assert re.search(rf"{path} (is damaged|is no Keras model, or was cut short)", message)


def test_weights_that_the_file_cannot_hold_are_not_allocated(saved: Path, tmp_path: Path) -> None:
    """Two Dense layers of 1,000 units whose configuration is changed to 200,000 units."""
    layers = [keras.layers.Dense(1000, name=f"d{number}") for number in range(2)]
    keras.Sequential([keras.Input((4,)), *layers]).save(saved)
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(tmp_path / "large.keras", "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, content.replace(b'"units": 1000', b'"units": 200000'))
    with pytest.raises(rl.UserError, match=r"ask for 0.804 GB of weights: it is damaged"):
        rl.load_model(tmp_path / "large.keras")
    assert "counted" not in keras.Layer.add_weight.__qualname__


def test_a_keras_file_loads_with_any_suffix(saved: Path, tmp_path: Path) -> None:
    path = shutil.copy(saved, tmp_path / "model.zip")
    x = np.ones((2, 4), np.float32)
    np.testing.assert_array_equal(rl.load_model(path)(x), rl.load_model(saved)(x))


@pytest.mark.parametrize("name", ["old.h5", "old.hdf5", "old.keras", "old"])
def test_an_hdf5_file_loads_with_any_suffix(name: str, saved: Path, tmp_path: Path) -> None:
    model = rl.load_model(saved)
    model.save(tmp_path / "m.h5")
    (tmp_path / "m.h5").rename(tmp_path / name)
    x = np.ones((2, 4), np.float32)
    np.testing.assert_array_equal(rl.load_model(tmp_path / name)(x), model(x))


def test_a_file_of_keras_2_loads(tmp_path: Path) -> None:
    """Its layers have the names and configs of that version; tf_keras is Keras 2."""
    program = (
        "import numpy as np, tf_keras as k; k.utils.set_random_seed(0);"
        "i = k.Input((6, 6, 2)); x = k.layers.Conv2D(3, 3, use_bias=False)(i);"
        "x = k.layers.ReLU()(k.layers.BatchNormalization()(x));"
        "m = k.Model(i, k.layers.Dense(2)(k.layers.GlobalAveragePooling2D()(x)));"
        "m.save('two.h5'); np.save('y.npy', m.predict(np.ones((1, 6, 6, 2)), verbose=0))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    got = rl.load_model(tmp_path / "two.h5")([np.ones((1, 6, 6, 2), np.float32)])
    np.testing.assert_allclose(got, np.load(tmp_path / "y.npy"), rtol=1e-5)


KERAS_2 = """
import sys, numpy as np, tf_keras as k
L = k.layers
k.utils.set_random_seed(0)
i = k.Input((6, 6, 2))

def base(name, frozen=False, sequential=False):
    layers = [L.Conv2D(2, 3, padding="same", name=name + "conv"), L.BatchNormalization(), L.ReLU()]
    n = x = k.Input((6, 6, 2))
    for layer in layers:
        x = layer(x)
    model = k.Sequential(layers, name=name + "s") if sequential else k.Model(n, x, name=name + "m")
    model.build((None, 6, 6, 2))
    for weight in model.weights:
        weight.assign(np.random.default_rng(len(weight.name)).uniform(0.5, 1, weight.shape))
    model.trainable = not frozen
    return model

def head(x):
    return L.Dense(2)(L.GlobalAveragePooling2D()(x))

kind = sys.argv[1]
if kind == "slashes":  # as in DenseNet; one of the new names is taken
    x = base("in/ner")(L.ReLU(name="conv1_bn")(L.Conv2D(2, 1, name="conv1/bn")(i)))
    m = k.Model(i, L.Dense(2, name="f/c")(L.GlobalAveragePooling2D(name="a/b")(x)))
elif kind == "called twice":
    b = base("b")
    m = k.Model(i, head(L.Add()([b(i), b(b(i))])))
elif kind == "frozen":
    m = k.Model(i, head(base("b", frozen=True)(i)))
elif kind == "sequential in functional":
    m = k.Model(i, head(base("b", sequential=True)(i)))
elif kind == "functional in sequential":
    m = k.Sequential([base("b", frozen=True), L.GlobalAveragePooling2D(), L.Dense(2)])
    m.build((None, 6, 6, 2))
elif kind == "model as output":
    m = k.Model(i, base("b", sequential=True)(base("c")(i)))
else:
    n = k.Input((6, 6, 2))
    two = k.Model(n, [L.Conv2D(2, 1)(n), L.Conv2D(2, 1)(n)], name="two")
    u, v = two(i)
    m = k.Model(i, {"u": head(u), "v": head(v)})
m.save("two.h5")
m.save("two.keras")
x = np.random.default_rng(1).normal(size=(3, 6, 6, 2)).astype("float32")
y = m(x)
y = list(y.values()) if isinstance(y, dict) else [y]
np.savez("y.npz", x=x, y=np.concatenate([np.ravel(a) for a in y]))
"""


@pytest.mark.parametrize(
    "kind",
    [
        *("slashes", "called twice", "frozen", "sequential in functional"),
        *("functional in sequential", "model as output", "two outputs"),
    ],
)
def test_nested_models_and_names_of_keras_2_load(kind: str, tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", KERAS_2, kind], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    wanted = np.load(tmp_path / "y.npz")
    model = rl.load_model(tmp_path / "two.h5")
    x = wanted["x"] if isinstance(model, keras.Sequential) else [wanted["x"]]
    got = [np.ravel(y) for y in keras.tree.flatten(model(x, training=False))]
    np.testing.assert_allclose(np.concatenate(got), wanted["y"], rtol=1e-5, atol=1e-6)
    if kind == "slashes":
        names = {layer.name for layer in model.layers}
        assert {"conv1_bn", "conv1_bn_", "in_nerm", "a_b", "f_c"} < names
        with pytest.raises(rl.UserError, match=r"saved by Keras 2 .*save\('NAME\.h5'\)"):
            rl.load_model(tmp_path / "two.keras")


def test_functions_of_tensorflow_in_a_keras_2_file_are_named(tmp_path: Path) -> None:
    program = (
        "import tensorflow as tf, tf_keras as k; i = k.Input((3,));"
        "k.Model(i, k.layers.Dense(2)(tf.abs(i) + 1)).save('two.h5')"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, check=True)
    with pytest.raises(rl.UserError, match=r"functions of TensorFlow as layers \(TFOpLambda\)"):
        rl.load_model(tmp_path / "two.h5")


def test_the_message_for_another_kind_of_file_says_how_to_save_a_model(
    saved: Path, tmp_path: Path
) -> None:
    model = rl.load_model(saved)
    model.save_weights(tmp_path / "net.weights.h5")
    with pytest.raises(rl.UserError, match=r"weights without a network.*load_weights"):
        rl.load_model(tmp_path / "net.weights.h5")
    (tmp_path / "graph").mkdir()
    (tmp_path / "graph" / "saved_model.pb").touch()
    with pytest.raises(rl.UserError, match=r"is a SavedModel.*model\.save\('NAME\.keras'\)"):
        rl.load_model(tmp_path / "graph")
    (tmp_path / "text.keras").write_text("no model")
    with pytest.raises(rl.UserError, match="no Keras model, or was cut short"):
        rl.load_model(tmp_path / "text.keras")
    np.savez(tmp_path / "samples.npz", image=np.ones(3))  # a zip file, as .keras files are
    with pytest.raises(rl.UserError, match=r"samples\.npz is no Keras model, or was cut short"):
        rl.load_model(tmp_path / "samples.npz")


OWN_LAYER = """
import keras

@keras.saving.register_keras_serializable("own")
class Twice(keras.layers.Layer):
    def call(self, inputs):
        return 2 * inputs
"""


def test_a_custom_layer_needs_its_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_layer.py").write_text(OWN_LAYER)
    program = (
        "import keras, own_layer; i = keras.Input((4,)); m = keras.Model(i, own_layer.Twice()(i));"
        "m.save('own.keras'); m.save('own.h5')"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, capture_output=True)
    for name, kind in (("own.keras", "class"), ("own.h5", "layer")):
        with pytest.raises(rl.UserError) as refusal:
            rl.load_model(tmp_path / name)
        assert f"uses the {kind} 'Twice', which Keras does not know. " in str(refusal.value)
        assert "--import MODULE" in str(refusal.value)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(rl.UserError, match="'no_such' cannot be imported"):
        rl.load_model(tmp_path / "own.keras", imports=["no_such"])
    model = rl.load_model(tmp_path / "own.keras", imports=["own_layer"])
    np.testing.assert_array_equal(model(np.ones((1, 4))), 2 * np.ones((1, 4)))


@pytest.mark.parametrize(
    ("layer", "before", "after", "says"),
    [
        (lambda: keras.layers.Dense(3), b'"units": 3', b'"units": 0', "Keras cannot load {}: "),
        (rl.BatchRenormalization, b'"axis": -1', b'"axis": 7', "{} cannot be loaded: Expected "),
    ],
)
def test_a_layer_that_cannot_be_built_is_no_damage(layer, before, after, says, tmp_path) -> None:
    """The reason is given, and not that the file is to be copied again."""
    whole, path = tmp_path / "whole.keras", tmp_path / "other.keras"
    keras.Sequential([keras.Input((4,)), layer()]).save(whole)
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name).replace(before, after))
    with pytest.raises(rl.UserError) as refusal:
        rl.load_model(path)
    assert str(refusal.value).startswith(says.format(path))
    assert "damaged" not in str(refusal.value)


def test_damaged_metadata_is_not_taken_for_that_of_keras_2(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.keras"
    with zipfile.ZipFile(saved) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            target.writestr(name, b"[" if name == "metadata.json" else source.read(name))
    x = np.ones((2, 4), np.float32)  # Keras reads the model without it
    np.testing.assert_array_equal(rl.load_model(path)(x), rl.load_model(saved)(x))


@pytest.mark.parametrize(("name", "megabytes"), [("config.json", 70), ("assets/words", 600)])
def test_a_file_that_expands_to_far_more_is_refused(name, megabytes, tmp_path) -> None:
    path = tmp_path / "net.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json" if name != "config.json" else "metadata.json", "{}")
        with archive.open(name, "w") as member:
            for _ in range(megabytes):
                member.write(b" " * 1_000_000)
    with pytest.raises(
        rl.UserError, match=rf"MB that expand to {megabytes / 1000:g} GB, .* damaged"
    ):
        rl.load_model(path)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_weights_that_expand_to_far_more_are_refused(suffix, tmp_path) -> None:
    x = keras.Input((4,))
    path = tmp_path / f"net{suffix}"
    keras.Model(x, keras.layers.Dense(3)(x)).save(path)
    weights = path
    if suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            archive.extractall(tmp_path / "parts")
        weights = tmp_path / "parts" / "model.weights.h5"
    with h5py.File(weights, "r+") as file:
        names: list[str] = []
        file.visititems(lambda k, v: names.append(k) if getattr(v, "shape", ()) == (4, 3) else None)
        del file[names[0]]
        file.create_dataset(names[0], (1 << 16, 1 << 14), "f4", chunks=(1024, 1024))
    if suffix == ".keras":
        with zipfile.ZipFile(path, "w") as archive:
            for part in (tmp_path / "parts").iterdir():
                archive.write(part, part.name)
    with pytest.raises(rl.UserError, match=r"and expands to 4\.29 GB of weights: it is damaged"):
        rl.load_model(path)


def test_code_in_the_file_runs_only_with_permission(tmp_path: Path) -> None:
    x = keras.Input((4,))
    model = keras.Model(x, keras.layers.Lambda(lambda t: t * 2 + 1)(x))
    model.save(tmp_path / "lambda.keras")
    with pytest.raises(rl.UserError, match=r"Lambda layer.*--unsafe"):
        rl.load_model(tmp_path / "lambda.keras")
    loaded = rl.load_model(tmp_path / "lambda.keras", unsafe=True)
    np.testing.assert_array_equal(loaded(np.ones((1, 4))), 3 * np.ones((1, 4)))
    folded = rl.fold(loaded)  # which builds the layer anew, and runs nothing that was not loaded
    np.testing.assert_array_equal(folded.model(np.ones((1, 4))), 3 * np.ones((1, 4)))


class _Own(keras.initializers.Initializer):
    """A class that is not registered."""

    def __call__(self, *args: object, **options: object) -> Any:
        return keras.ops.zeros(args[0]) if args and isinstance(args[0], tuple) else 0.0


@pytest.mark.parametrize("suffix", ["keras", "h5"])
@pytest.mark.parametrize("option", ["initializer", "regularizer", "constraint"])
@pytest.mark.parametrize("code", [lambda *_, **__: 0.0, _Own()], ids=["lambda", "class"])
@pytest.mark.filterwarnings("ignore:.*includes a `lambda`")
def test_code_that_only_training_needs_is_left_out(
    code: Any, option: str, suffix: str, tmp_path: Path
) -> None:
    layer = keras.layers.Dense(3, name="last")
    model = keras.Sequential([keras.Input((4,)), layer], name="model")
    setattr(layer, f"kernel_{option}", code)
    path = tmp_path / f"model.{suffix}"
    model.save(path)
    with pytest.warns(UserWarning, match=f"without the kernel_{option} of layer 'last': Keras"):
        loaded = rl.load_model(path)
    np.testing.assert_array_equal(loaded.get_layer("last").kernel, layer.kernel)
    np.testing.assert_array_equal(loaded.get_layer("last").bias, layer.bias)


@pytest.mark.parametrize("suffix", ["keras", "h5"])
@pytest.mark.filterwarnings("ignore:.*includes a `lambda`")
def test_an_activation_that_is_a_lambda_is_named(suffix: str, tmp_path: Path) -> None:
    layer = keras.layers.Dense(3, activation=lambda x: x * x, name="squared")
    keras.Sequential([keras.Input((4,)), layer]).save(tmp_path / f"model.{suffix}")
    with pytest.raises(rl.UserError, match=r"activation of layer 'squared' in .* is a lambda"):
        rl.load_model(tmp_path / f"model.{suffix}")
