"""Protects that files keep the Keras model's inputs and outputs: names, order, types, signature."""

from __future__ import annotations

import keras
import numpy as np
import onnx
import pytest
import renormlite as rl
from ai_edge_litert.interpreter import Interpreter
from keras import layers


def two_by_two() -> keras.Model:
    """Names whose alphabetical order is not that of the model."""
    zebra, ant = keras.Input((8, 8, 3), name="zebra"), keras.Input((5,), name="ant")
    y = layers.GlobalAveragePooling2D()(rl.BatchRenormalization()(layers.Conv2D(4, 3)(zebra)))
    both = layers.Concatenate()([y, ant])
    return keras.Model(
        [zebra, ant], [layers.Dense(2, name="z")(both), layers.Dense(3, name="a")(both)]
    )


def dictionaries() -> keras.Model:
    image, extra = keras.Input((8, 8, 3), name="image"), keras.Input((5,), name="extra")
    y = layers.Concatenate()([layers.GlobalAveragePooling2D()(image), extra])
    outputs = {"logits": layers.Dense(2, name="d1")(y), "embedding": layers.Dense(3, name="d2")(y)}
    return keras.Model({"image": image, "extra": extra}, outputs)


def test_order_and_names_are_the_models_in_both_formats(export):
    manifest, folder = export(two_by_two())
    interpreter = Interpreter(str(folder / "net.float32.tflite"))
    interpreter.allocate_tensors()
    assert [d["name"] for d in interpreter.get_input_details()] == ["zebra", "ant"]
    assert [d["name"] for d in interpreter.get_output_details()] == ["z", "a"]
    graph = onnx.load(folder / "net.float32.onnx").graph
    assert [value.name for value in graph.input] == ["zebra", "ant"]
    assert [value.name for value in graph.output] == ["z", "a"]
    assert [t.name for t in manifest.inputs] == ["zebra", "ant"]


def test_the_signature_runs_by_keras_names(export):
    model = two_by_two()
    _, folder = export(model)
    interpreter = Interpreter(str(folder / "net.float32.tflite"))
    # The runtime lists the names in alphabetical order, whatever the file's.
    assert interpreter.get_signature_list() == {
        "serving_default": {"inputs": ["ant", "zebra"], "outputs": ["a", "z"]}
    }
    zebra = np.random.default_rng(0).random((1, 8, 8, 3), np.float32)
    ant = np.ones((1, 5), np.float32)
    results = interpreter.get_signature_runner("serving_default")(zebra=zebra, ant=ant)
    for name, expected in zip(("z", "a"), model([zebra, ant]), strict=True):
        np.testing.assert_allclose(results[name], expected, rtol=1e-4, atol=1e-6)


def test_dictionaries_keep_their_keys(export):
    manifest, _ = export(dictionaries(), formats=("tflite", "onnx", "saved_model"))
    for artifact in manifest.artifacts:
        assert {t.name for t in artifact.inputs} == {"image", "extra"}
        assert {t.name for t in artifact.outputs} == {"logits", "embedding"}
        assert all(value > 100 for value in artifact.snr_db.values())


@pytest.mark.parametrize("name", ["in put:0", "größe", "a;b/c"])
def test_names_with_special_characters_are_kept(name, export):
    x = keras.Input((4,), name="x")
    model = keras.Model(x, layers.Dense(3, name=name.replace("/", ""))(x))
    manifest, folder = export(model)
    wanted = name.replace("/", "")
    assert [a.outputs[0].name for a in manifest.artifacts] == [wanted, wanted]
    interpreter = Interpreter(str(folder / "net.float32.tflite"))
    assert interpreter.get_output_details()[0]["name"] == wanted


def test_inner_tensors_carry_the_keras_layer_names(small, export):
    _, folder = export(small)
    interpreter = Interpreter(str(folder / "net.float32.tflite"))
    tflite = {d["name"].split("/")[0] for d in interpreter.get_tensor_details()}
    nodes = {n.name.split("/")[0] for n in onnx.load(folder / "net.float32.onnx").graph.node}
    for layer in ("stem", "depth", "fc"):
        assert layer in tflite
        assert layer in nodes


def test_layers_whose_names_look_numbered_are_not_confused(export):
    x = keras.Input((8, 8, 3), name="x")
    shared = layers.Conv2D(3, 3, padding="same", name="conv")
    y = layers.Conv2D(2, 3, activation="relu", name="conv_1")(shared(shared(x)))
    _, folder = export(keras.Model(x, y))
    nodes = [n.name for n in onnx.load(folder / "net.float32.onnx").graph.node]
    owners = {name.split("/")[0] for name in nodes if "/" in name}
    assert owners == {"conv", "conv#2", "conv_1"}


@pytest.mark.parametrize("batch_size", [1, 3, None])
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_tensor_returned_twice_has_two_names(precision, batch_size, export):
    x = keras.Input((4,), name="x")
    y = layers.Dense(3, name="y", activation="relu")(x)
    model = keras.Model(x, {"first": y, "second": layers.Dense(2)(y), "third": y})
    samples = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    manifest, folder = export(
        model, precisions=(precision,), inputs=samples, batch_size=batch_size, equalize="never"
    )
    golden = np.load(folder / "golden.npz")
    for artifact in manifest.artifacts:
        assert [t.name for t in artifact.outputs] == ["first", "second", "third"]
        first, third = (golden[f"artifact:{artifact.file}:{name}"] for name in ("first", "third"))
        np.testing.assert_array_equal(first, third)
        assert first.any()
        assert all(ratio > 20 for ratio in artifact.snr_db.values())


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_an_input_returned_as_output_gets_a_name_of_its_own(precision, export):
    x = keras.Input((4,), name="x")
    model = keras.Model(x, [x, layers.Dense(3, name="y")(x)])
    samples = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    manifest, _ = export(model, precisions=(precision,), inputs=samples)
    for artifact in manifest.artifacts:
        assert [t.name for t in artifact.outputs] == ["x_1", "y"]
        assert artifact.outputs[0].keras_name == "x"
        assert artifact.snr_db["x"] is None or artifact.snr_db["x"] > 20


def test_a_tensor_returned_twice_passes_the_checks(export):
    x = keras.Input((4,), name="x")
    y = layers.Dense(3, name="y")(x)
    _, folder = export(keras.Model(x, [y, y, x]))
    report = rl.check_parity(folder, targets=("litert", "onnxruntime"), per_op=True)
    assert report.passed


def test_an_input_of_unknown_size_is_refused(export):
    x = keras.Input((None, None, 3), name="photo")
    model = keras.Model(x, layers.GlobalAveragePooling2D(name="y")(x))
    with pytest.raises(rl.UserError, match="photo"):
        export(model)


@pytest.mark.parametrize("batch_size", [1, 4, None])
def test_batch_sizes(batch_size, small, export):
    manifest, _ = export(small, batch_size=batch_size, formats=("tflite", "onnx", "saved_model"))
    for artifact in manifest.artifacts:
        assert artifact.inputs[0].shape == (batch_size, 12, 12, 3)
        assert artifact.outputs[0].shape == (batch_size, 5)
        assert artifact.snr_db["scores"] > 110


def test_a_free_batch_accepts_any_batch_size(small, export):
    _, folder = export(small, batch_size=None)
    batch = np.random.default_rng(0).random((7, 12, 12, 3), np.float32)
    expected = small(batch, training=False)
    import onnxruntime
    from ai_edge_litert.interpreter import Interpreter

    session = onnxruntime.InferenceSession(str(folder / "net.float32.onnx"))
    (found,) = session.run(["scores"], {"image": batch})
    np.testing.assert_allclose(found, expected, atol=2e-5)
    interpreter = Interpreter(model_path=str(folder / "net.float32.tflite"), num_threads=1)
    interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], batch.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], batch)
    interpreter.invoke()
    found = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    np.testing.assert_allclose(found, expected, atol=2e-5)
