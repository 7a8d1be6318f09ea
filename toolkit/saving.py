"""Loads a saved Keras model that uses any layer or schedule of renormlite."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import keras

from ..errors import UserError, printable
from ..user_code import import_user_module

# Importing these modules registers renormlite's classes with Keras.
from . import bias_map as _bias_map  # noqa: F401
from . import channel_affine as _channel_affine  # noqa: F401
from . import layers as _layers  # noqa: F401
from . import learned as _learned  # noqa: F401
from .keras_2 import upgraded
from .quantize_aware import functions as _functions  # noqa: F401
from .quantize_aware import linear as _linear  # noqa: F401
from .quantize_aware import operators as _operators  # noqa: F401
from .training_code import lambda_activation, without_training_code

HOW_TO_SAVE = "Save the trained model with model.save('NAME.keras')."

_SUFFIXES = {"keras": (".keras",), "h5": (".h5", ".hdf5")}
# Weights may take as many bytes, or as many times the size of their file, which may be compressed.
_SMALL_MODEL, _MOST_TIMES = 1 << 29, 16
_CONFIG = "config.json"  # in a .keras file
_LARGEST_TEXT = 1 << 26  # bytes of the configuration, which has some megabytes in large models
_HDF5 = b"\x89HDF\r\n\x1a\n"  # the first bytes of every such file
# How Keras names custom code that is not registered, in .keras and in .h5 files.
_UNREGISTERED = re.compile(
    r"(?:Could not locate|Unknown) (?P<kind>[a-z ]+):? '(?:[^'>]+>)?(?P<name>[^']+)'"
)

# Layers of Keras 2 that call a function of TensorFlow.
_TENSORFLOW_FUNCTION = re.compile(r"(TFOpLambda|SlicingOpLambda|ClassMethod|InstanceMethod)\b")


def load_model(
    path: str | os.PathLike[str], *, imports: Sequence[str] = (), unsafe: bool = False
) -> keras.Model:
    """Load a model saved by ``model.save("NAME.keras")`` or as ``.h5``, ready to fold and export.

    Like ``keras.models.load_model``, after importing renormlite's layers.

    Args:
        path: A ``.keras`` file, or an ``.h5`` file of Keras 2 or 3.
        imports: Modules that define and register the model's own layers. Importing a module runs
            its code.
        unsafe: Whether to run Python code stored in the file, as in Lambda layers. Only
            for files whose origin you trust.

    Returns:
        The model with its weights, not compiled.

    Raises:
        UserError: There is no such file, it is damaged or no Keras model, or it needs code that
            this process does not know.
    """
    for module in imports:
        import_user_module(module)
    path = Path(path)
    kind = _kind_of(path)
    try:
        with tempfile.TemporaryDirectory() as folder, _bounded_weights(path):
            named = _loadable(path, kind, Path(folder))
            if named.suffix not in _SUFFIXES[kind]:  # Keras goes by the name
                named = Path(folder) / f"model.{kind}"
                named.symlink_to(path.resolve())
            return keras.models.load_model(named, compile=False, safe_mode=not unsafe)
    except UserError as error:
        if str(path) in str(error):
            raise
        raise UserError(printable(f"{path} cannot be loaded: {error}")) from error  # our layers'
    except Exception as error:  # a file, and the code it names, can raise anything
        raise UserError(printable(_reason(path, error))) from error


def _loadable(path: Path, kind: str, folder: Path) -> Path:
    """Return a copy of a file with a configuration that Keras 3 reads; `path` if its own is one.

    Raises:
        UserError: There is code in it that Keras cannot load.
    """
    config, version = _config_of(path, kind)
    left_out: list[str] = []
    changed = upgraded(config) if version.startswith("2") else config
    changed = without_training_code(changed, left_out)
    if layer := lambda_activation(changed):
        raise UserError(
            f"The activation of layer {layer!r} in {path} is a lambda, which Keras cannot load. "
            "Give the layer a named function registered with "
            "@keras.saving.register_keras_serializable() and name its module: --import MODULE, or "
            "export the model from the program that builds it, with renormlite.export_model."
        )
    if changed == config:
        return path
    if left_out:
        them = "it" if len(left_out) == 1 else "them"
        more = f" and {len(left_out) - 1} more" if len(left_out) > 1 else ""
        warnings.warn(
            f"{path} is loaded without {left_out[0]}{more}: Keras cannot load {them}, and only "
            f"training needs {them}.",
            stacklevel=3,
        )
    return _with_config(path, kind, changed, folder)


def _config_of(path: Path, kind: str) -> tuple[Any, str]:
    """Return the configuration of a model and the version of Keras that saved it."""
    import h5py

    if kind == "keras":
        with zipfile.ZipFile(path) as archive:
            return json.loads(archive.read(_CONFIG)), "3"
    with h5py.File(path) as file:
        version = file.attrs.get("keras_version", "2")
        version = version.decode() if isinstance(version, bytes) else str(version)
        return json.loads(file.attrs["model_config"]), version


def _with_config(path: Path, kind: str, config: Any, folder: Path) -> Path:
    """Return a copy of a file with another configuration."""
    import h5py

    if kind == "h5":
        copy = Path(shutil.copyfile(path, folder / "changed.h5"))
        with h5py.File(copy, "r+") as file:
            file.attrs["model_config"] = json.dumps(config)
        return copy
    copy = folder / "changed.keras"
    with zipfile.ZipFile(path) as before, zipfile.ZipFile(copy, "w") as after:
        for entry in before.infolist():
            if entry.filename == _CONFIG:
                after.writestr(entry.filename, json.dumps(config))
                continue
            target = after.open(entry.filename, "w", force_zip64=True)
            with before.open(entry) as source, target:
                shutil.copyfileobj(source, target)
    return copy


@contextlib.contextmanager
def _bounded_weights(path: Path) -> Iterator[None]:
    """Refuse weights far larger than the file that should hold them, before they are allocated.

    Keras allocates what the configuration of the layers asks for, and reads the weights afterwards,
    which may be compressed.

    Raises:
        UserError: The layers ask for too much, or the weights in the file have too many bytes.
    """
    import h5py

    limit = max(_SMALL_MODEL, _MOST_TIMES * path.stat().st_size)
    asked = read = 0
    add_weight, get_item, as_array = (
        keras.Layer.add_weight,
        h5py.Dataset.__getitem__,
        h5py.Dataset.__array__,
    )

    def counted(layer: keras.Layer, *args: Any, shape: Any = None, **options: Any) -> Any:
        nonlocal asked
        sizes = shape if isinstance(shape, (tuple, list)) else (shape or 1,)
        asked += 4 * math.prod(sizes)
        if asked > limit:
            raise MemoryError
        return add_weight(layer, *args, shape=shape, **options)

    def counting(method: Any) -> Any:
        def reading(dataset: h5py.Dataset, *args: Any, **options: Any) -> Any:
            nonlocal read
            read += dataset.nbytes if read <= limit else 0  # Keras may try again
            if read > limit:
                raise MemoryError
            return method(dataset, *args, **options)

        return reading

    keras.Layer.add_weight = counted
    h5py.Dataset.__getitem__, h5py.Dataset.__array__ = counting(get_item), counting(as_array)
    try:
        yield
    except Exception as error:
        if max(asked, read) <= limit:
            raise
        claims = "its layers ask for" if asked > limit else "expands to"
        raise UserError(
            f"{path} has {path.stat().st_size / 1e6:.1f} MB, and {claims} "
            f"{max(asked, read) / 1e9:.3g} GB of weights: it is damaged. {HOW_TO_SAVE}"
        ) from error
    finally:
        keras.Layer.add_weight = add_weight
        h5py.Dataset.__getitem__, h5py.Dataset.__array__ = get_item, as_array


def _kind_of(path: Path) -> str:
    """Return `keras` or `h5`.

    Raises:
        UserError: It is neither; the message says how to convert it.
    """
    if path.is_dir() and (path / "saved_model.pb").is_file():
        raise UserError(
            f"{path} is a SavedModel, which holds a graph and no layers. Save the model from the "
            f"program that trained it with model.save('NAME.keras'), or, if Keras 2 made it, "
            f"run: tf_keras.models.load_model('{path}').save('NAME.h5')."
        )
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise UserError(f"Expected a model file. Received: {path}, which {what}. {HOW_TO_SAVE}")
    if zipfile.is_zipfile(path) and _has_config(path):
        _refuse_bomb(path)
        if _is_of_keras_2(path):
            raise UserError(
                f"{path} was saved by Keras 2 in a format that Keras 3 cannot read. Save it as "
                f"HDF5: tf_keras.models.load_model('{path}').save('NAME.h5')."
            )
        return "keras"
    with open(path, "rb") as stream:
        if stream.read(len(_HDF5)) != _HDF5:
            raise UserError(f"{path} is no Keras model, or was cut short. {HOW_TO_SAVE}")
    if not _has_network(path):
        raise UserError(
            f"{path} holds weights without a network. Build the model by its code, then: "
            f"model.load_weights('{path}'); model.save('NAME.keras')."
        )
    return "h5"


def _has_config(path: Path) -> bool:
    """Whether a zip file holds the configuration of a model, or is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            return _CONFIG in archive.namelist()
    except Exception:  # a damaged file can raise any type; Keras' error says what is wrong
        return True


def _refuse_bomb(path: Path) -> None:
    """Refuse a .keras file that expands to far more than its size, before it is read.

    Raises:
        UserError: The file does.
    """
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
    except Exception:  # as above
        return
    expanded = sum(sizes.values())
    text = sum(number for name, number in sizes.items() if name.endswith(".json"))
    if text > _LARGEST_TEXT or expanded > max(_SMALL_MODEL, _MOST_TIMES * size):
        raise UserError(
            f"{path} has {size / 1e6:.1f} MB that expand to {expanded / 1e9:.3g} GB, "
            f"{text / 1e9:.3g} GB of it the model's configuration: it is damaged. {HOW_TO_SAVE}"
        )


def _is_of_keras_2(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            metadata = json.loads(archive.read("metadata.json"))
            return str(metadata["keras_version"]).startswith("2.")
    except Exception:  # a damaged file can raise any type; Keras' error says what is wrong
        return False


def _has_network(path: Path) -> bool:
    """Whether an HDF5 file holds the configuration of a model.

    Raises:
        UserError: It is damaged.
    """
    import h5py

    try:
        with h5py.File(path) as file:
            return "model_config" in file.attrs
    except OSError as error:
        raise UserError(f"{path} is damaged or was cut short ({error}). {HOW_TO_SAVE}") from error


def _reason(path: Path, error: Exception) -> str:
    """Return one sentence from Keras' long error message."""
    text = str(error)
    if "Lambda" in text and "unsafe" in text:
        return (
            f"{path} holds a Lambda layer: Python code that would run as the file is read. If you "
            "trust where the file comes from, allow it: --unsafe (Python: unsafe=True). A layer "
            "class of your own instead of the Lambda needs no permission."
        )
    if functions := sorted(set(_TENSORFLOW_FUNCTION.findall(text))):
        return (
            f"{path} calls functions of TensorFlow as layers ({', '.join(functions)}), which only "
            "Keras 2 can load. Build the model in Keras 3 with keras.ops in their place, then: "
            f"model.load_weights('{path}')."
        )
    if unknown := _UNREGISTERED.search(text):
        return (
            f"{path} uses the {unknown['kind']} {unknown['name']!r}, which Keras does not know. "
            "Name the module that defines and registers it: --import MODULE (Python: import it "
            "first)."
        )
    if _is_damage(error):
        return f"{path} is damaged or was cut short ({_first_line(text)}). {HOW_TO_SAVE}"
    # Keras puts the cause between the configs of everything that was being built.
    reason = text.rpartition("Exception encountered: ")[2].strip()
    reason = _first_line(reason).partition(" Full object config")[0].rstrip(".")
    return (
        f"Keras cannot load {path}: {reason}. If it needs a layer of your own, name the module "
        "that defines and registers it: --import MODULE (Python: import it first)."
    )


def _is_damage(error: BaseException | None) -> bool:
    """Return whether an error, or its cause, says that the file is corrupt."""
    import zlib

    damage = (zipfile.BadZipFile, zlib.error, EOFError, UnicodeDecodeError)
    while error is not None:
        if isinstance(error, damage) or type(error) in (OSError, KeyError, NotImplementedError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    line = lines[0] if lines else "no reason given"
    if line.endswith(":") and len(lines) > 1:
        line = f"{line} {lines[1]}"
    quoted = len(line) > 1 and line[0] == line[-1] and line[0] in "\"'"
    return line[1:-1] if quoted else line
