"""Writes SavedModels: the folded network as a frozen graph, for TensorFlow Serving and converters.

`tf.compat.v1.saved_model` is used, since its graphs need no functions, whose generated names would
differ between files. `tf.saved_model.load` can read it.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from ...artifacts.manifest import METADATA_KEY, TensorSpec
from ...errors import UserError
from ...runtimes.base import Runner
from ...runtimes.saved_model import SIGNATURE_KEY, SavedModelRunner
from ..signature import unique_names
from .base import Contents, Job, check_interface
from .freeze import FrozenGraph

if TYPE_CHECKING:
    import tensorflow as tf

_ILLEGAL = re.compile(r"[^A-Za-z0-9_.\\/>-]")  # in the name of a TensorFlow op
_VARIABLE_OPS = {"VarHandleOp", "ReadVariableOp", "VariableV2"}


class SavedModel:
    """The format `saved_model`: a folder."""

    name = "saved_model"
    suffix = ".saved_model"

    def write(self, job: Job, path: Path) -> None:
        """Write the folder."""
        import tensorflow as tf

        graph_def = _readable(job.graph)
        with tf.Graph().as_default() as graph:
            tf.import_graph_def(graph_def, name="")
            signature = tf.compat.v1.saved_model.predict_signature_def(
                {
                    tensor.name: graph.get_tensor_by_name(f"input_{index}:0")
                    for index, tensor in enumerate(job.graph.signature.inputs)
                },
                {
                    tensor.name: graph.get_tensor_by_name(f"output_{index}:0")
                    for index, tensor in enumerate(job.graph.signature.outputs)
                },
            )
            with tf.compat.v1.Session(graph=graph) as session:
                builder = tf.compat.v1.saved_model.Builder(str(path))
                builder.add_meta_graph_and_variables(
                    session,
                    [tf.saved_model.SERVING],
                    signature_def_map={SIGNATURE_KEY: signature},
                    strip_default_attrs=True,
                )
                builder.save()
        (path / "assets.extra").mkdir()
        (path / "assets.extra" / f"{METADATA_KEY}.json").write_text(job.metadata, encoding="utf-8")

    def validate(self, path: Path, job: Job) -> Contents:
        """Load the folder, check that it has no variables, and compare the signature."""
        import tensorflow as tf

        loaded = tf.saved_model.load(str(path))
        function = loaded.signatures[SIGNATURE_KEY]
        ops = Counter(
            op.type
            for op in function.graph.get_operations()
            if op.type not in ("Const", "Placeholder", "Identity", "NoOp")
        )
        variables = sorted(_VARIABLE_OPS & set(ops))
        if variables:
            raise UserError(f"{path.name} holds variables ({', '.join(variables)}).")
        _, inputs = function.structured_input_signature
        outputs = function.structured_outputs
        signature = job.graph.signature
        contents = Contents(
            dict(ops),
            tuple(_tensor_info(t.name, inputs[t.name]) for t in signature.inputs),
            tuple(_tensor_info(t.name, outputs[t.name]) for t in signature.outputs),
        )
        check_interface(path, contents, signature)
        return contents

    def runner(self, path: Path) -> Runner:
        """Return a runner on TensorFlow."""
        return SavedModelRunner(path)


def _readable(graph: FrozenGraph) -> tf.compat.v1.GraphDef:
    """Return the graph with op names that begin with the names of Keras layers."""
    import tensorflow as tf

    graph_def = tf.compat.v1.GraphDef()
    graph_def.CopyFrom(graph.with_weights().graph_def)
    old = [node.name for node in graph_def.node]
    new = unique_names([_ILLEGAL.sub("_", graph.readable_name(name)).lstrip("_/") for name in old])
    names = dict(zip(old, new, strict=True))
    for node in graph_def.node:
        node.name = names[node.name]
        for index, value in enumerate(node.input):
            control, _, port = value.partition(":")
            mark = "^" if control.startswith("^") else ""
            node.input[index] = mark + names[control[len(mark) :]] + (f":{port}" if port else "")
    return graph_def


def _tensor_info(name: str, spec: tf.TensorSpec) -> TensorSpec:
    return TensorSpec(name, tuple(spec.shape.as_list()), spec.dtype.name)
