"""Copy a Keras model of any kind, with some of its layers replaced.

Functional and Sequential models are rebuilt from copies of their layers. Everything else that
contains layers (a subclassed model, a composite layer, a wrapper such as TimeDistributed) is
recreated from its config, and the replacements are assigned to its attributes. A shared layer is
copied once.

Keras has no public way to list the layers inside a layer or to replace one of them. All uses of
Keras internals for this are in this file: ``Layer._layers``, ``Layer._tracker``,
``KerasTensor._keras_history`` and ``Lambda._output_shape``.
"""

from __future__ import annotations

import inspect
import tempfile
import warnings
from typing import Any, Protocol, runtime_checkable

import keras
from keras import tree
from keras.layers import Layer

from ..errors import UserError

# Methods that make a model class more than its layers.
_BEHAVIOUR = ("call", "compute_loss", "train_step", "test_step", "predict_step")


class Swap(Protocol):
    """Which layers are swapped, and for what."""

    def wants(self, layer: Layer) -> bool:
        """Return whether this layer is to be swapped."""
        ...

    def make(self, layer: Layer) -> Layer:
        """Return its replacement, not built yet, which must accept the same call arguments."""
        ...

    def fill(self, layer: Layer, twin: Layer) -> None:
        """Set the weights of the replacement, once it is built."""
        ...


@runtime_checkable
class _HasAssets(Protocol):
    """A layer with state that is no variable, such as the vocabulary of a StringLookup."""

    def save_assets(self, dir_path: str) -> None: ...
    def load_assets(self, dir_path: str) -> None: ...


def rebuild(model: keras.Model, swap: Swap) -> keras.Model:
    """Return a copy of ``model``, not compiled, with layers replaced; the model is not changed.

    Names, weights, the `trainable` of every layer and the sharing of layers carry over.

    Args:
        model: A built model.
        swap: Which layers to replace, and by what.

    Raises:
        UserError: If a layer cannot be recreated from its config, or its inner layers cannot be
            reached.
    """
    copier = _Copier(swap)
    clone: keras.Model = copier.copy(model)
    copier.settle()
    copier.carry_over(model)
    return clone


def layers_within(layer: Layer) -> list[Layer]:
    """Return a layer and all layers inside it, each once, in order, parents first."""
    found: dict[int, Layer] = {}

    def enter(layer: Layer) -> None:
        if id(layer) not in found:
            found[id(layer)] = layer
            for inner in layer._layers:
                enter(inner)

    enter(layer)
    return list(found.values())


class _Copier:
    def __init__(self, swap: Swap) -> None:
        self.swap = swap
        self.copies: dict[int, Any] = {}
        # Layers recreated from their config whose inner layers are still to be replaced.
        self.unsettled: list[tuple[Layer, Layer]] = []

    def copy(self, old: Any) -> Any:
        """Return the copy of a layer or operation: the same one for every call."""
        if id(old) not in self.copies:
            self.copies[id(old)] = self._copy(old)
        return self.copies[id(old)]

    def _copy(self, old: Any) -> Any:
        if not isinstance(old, Layer):  # a bare operation, as `x + y` makes
            return type(old).from_config(old.get_config())
        if self.swap.wants(old):
            return self.swap.make(old)
        if isinstance(old, keras.Sequential):
            return self._sequential(old)
        if isinstance(old, keras.Function):
            return self._functional(old)
        new = _made_anew(old)
        self.unsettled.append((old, new))
        return new

    def _sequential(self, old: keras.Sequential) -> keras.Model:
        make = _constructor(old, keras.Sequential)
        layers = [self.copy(layer) for layer in old.layers]
        if old.built:
            layers.insert(0, _like(old.inputs[0]))
        return make(layers, name=old.name)

    def _functional(self, old: Any) -> keras.Model:
        plain: Any = next(c for c in type(old).__mro__ if c.__name__ == "Functional")
        make = _constructor(old, plain)
        # A compiled model would have its clone compiled, from a config that not every loss has.
        graph = plain(old.input, old.output, name=old.name)
        inputs = tree.map_structure(_like, old.input)
        clone = keras.models.clone_model(graph, input_tensors=inputs, clone_function=self.copy)
        return clone if make is plain else make(clone.input, clone.output, name=old.name)

    def settle(self) -> None:
        """Swap inside the recreated layers, once all layers that are called are built."""
        while self.unsettled:
            old, new = self.unsettled.pop()
            _build_like(old, new)
            self._match(old, new)

    def _match(self, old: Layer, new: Layer) -> None:
        """Pair the layers inside two layers, and put what is swapped among them in place."""
        if len(old._layers) != len(new._layers):
            raise UserError(
                f"{_told(old)} holds {len(old._layers)} layers, and {len(new._layers)} when "
                "recreated from its config. Create all of them in its constructor or in build()."
            )
        put: dict[int, Layer] = {}
        for inner, fresh in zip(old._layers, new._layers, strict=True):
            if id(inner) in self.copies or self._is_not_what_its_class_made(inner, fresh):
                put[id(fresh)] = self.copy(inner)
                _build_like(inner, put[id(fresh)])
            else:
                fresh.name = inner.name
                self.copies[id(inner)] = fresh
                self._match(inner, fresh)
        _replace_inside(new, put)

    def _is_not_what_its_class_made(self, inner: Layer, fresh: Layer) -> bool:
        if self.swap.wants(inner) or type(inner) is not type(fresh):  # to be swapped, or has been
            return True
        return isinstance(inner, keras.Sequential | keras.Function)

    def carry_over(self, model: keras.Model) -> None:
        """Carry over weights and `trainable`."""
        pairs = [
            (old, self.copies[id(old)])
            for old in layers_within(model)
            if id(old) in self.copies  # input layers are not
        ]
        for old, new in pairs:  # set on a layer, it is set on all inside; those come later
            new.trainable = old.trainable
        for old, new in pairs:  # but one inside two layers may have come between them
            if not old._layers:
                new.trainable = old.trainable
        for old, new in pairs:
            if self.swap.wants(old):
                self.swap.fill(old, new)
            elif old.built:
                _build_like(old, new)
                _copy_own_state(old, new)


def _constructor(model: keras.Model, plain: Any) -> Any:
    """Return a callable that makes a model of the same class from layers or tensors.

    A class with its own constructor cannot be called like that. If it adds nothing else, the plain
    class is used; otherwise the model cannot be copied.
    """
    cls: Any = type(model)
    if cls is plain:
        return plain
    arguments = inspect.getfullargspec(cls.__init__)
    if arguments.args == inspect.getfullargspec(plain.__init__).args or (
        arguments.varargs and arguments.varkw
    ):
        return cls
    own = [name for name in _BEHAVIOUR if getattr(cls, name) is not getattr(plain, name)]
    if own:
        raise UserError(
            f"{_told(model)} has a constructor and a {own[0]}() of its own, so no copy of it can "
            f"be made. Give the constructor the arguments of keras.{plain.__name__}, or build the "
            "model in call() instead."
        )
    return plain


def _like(tensor: keras.KerasTensor) -> keras.KerasTensor:
    source = tensor._keras_history.operation
    return type(source).from_config(source.get_config()).output


def _made_anew(old: Layer) -> Layer:
    if isinstance(old, keras.layers.Lambda):
        # A Python lambda that went through its config has lost the globals it refers to.
        return keras.layers.Lambda(
            old.function,
            output_shape=old._output_shape,
            mask=old.mask,
            arguments=dict(old.arguments),
            name=old.name,
            dtype=old.dtype_policy,
        )
    try:
        new: Layer = type(old).from_config(old.get_config())
    except (TypeError, ValueError, NotImplementedError) as error:
        # Keras puts the whole config before the reason.
        reason = str(error).rpartition("Exception encountered: ")[2].strip().partition("\n")[0]
        if isinstance(error, NotImplementedError):
            reason = "it has none"
        raise UserError(
            f"{_told(old)} cannot be recreated from its config ({reason.rstrip('.')}). "
            f"{_remedy(old)}"
        ) from error
    _name_alike(old, new)
    return new


def _remedy(layer: Layer) -> str:
    if type(layer).__module__.partition(".")[0] == "keras":
        return (
            "Keras cannot load it from a file either: give it named functions in place of lambdas, "
            "registered with keras.saving.register_keras_serializable."
        )
    return "Its get_config() must return every argument of its constructor, name included."


def _name_alike(old: Layer, new: Layer) -> None:
    """Name the inner layers before they are built; Keras numbers unnamed ones."""
    for inner, fresh in zip(old._layers, new._layers, strict=False):
        if type(inner) is type(fresh):
            fresh.name = inner.name
            _name_alike(inner, fresh)


def _build_like(old: Layer, new: Layer) -> None:
    """Build a layer with the shapes that another was built with, if it is not built yet."""
    if new.built or not old.built:
        return
    if isinstance(new, keras.Model):
        # Keras tries, and warns where it cannot: the layers inside are then built one by one.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            new.build_from_config(old.get_build_config())
        new.built = True
    elif type(new).build is not Layer.build:
        new.build_from_config(old.get_build_config())


def _replace_inside(layer: Layer, put: dict[int, Layer]) -> None:
    """Replace layers wherever the attributes of ``layer`` refer to them.

    Args:
        layer: Layer to change.
        put: The replacement by the identity of the layer that it replaces.
    """
    if not put:
        return
    replaced = [inner for inner in layer._layers if id(inner) in put]
    for inner in replaced:
        layer._tracker.replace_tracked_value("layers", inner, put[id(inner)])
    found = set()

    def new_one(value: Any) -> Any:
        if id(value) not in put:
            return value
        found.add(id(value))
        return put[id(value)]

    for name, value in list(vars(layer).items()):
        # TensorFlow's records of the same attributes follow by themselves.
        if name.startswith("_self_") or not any(id(x) in put for x in tree.flatten(value)):
            continue
        # The attribute names are the user's.
        setattr(layer, name, tree.map_structure(new_one, value))
    missing = [inner for inner in replaced if id(inner) not in found]
    if missing:
        raise UserError(
            f"{_told(layer)} keeps {missing[0].name} where it cannot be replaced. Keep "
            "layers in attributes, or in lists, tuples or dicts in attributes."
        )


def _copy_own_state(old: Layer, new: Layer) -> None:
    """Copy the weights of a layer, without those of its inner layers, as Keras saves them."""
    store: dict[str, Any] = {}
    old.save_own_variables(store)
    if store:
        new.load_own_variables(store)
    if isinstance(old, _HasAssets) and isinstance(new, _HasAssets):
        with tempfile.TemporaryDirectory() as folder:
            old.save_assets(folder)
            new.load_assets(folder)


def _told(layer: Layer) -> str:
    return f"{layer.name} ({type(layer).__name__})"
