"""``--top-k OUTPUT=K``: returns the K best of an output's scores instead of all of them.

It is the one change of a model's interface that exprune makes, and only when asked: the output
``OUTPUT`` gives way to ``OUTPUT_values`` and ``OUTPUT_indices``, both ``[..., K]``, best first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from exprune_cli.errors import ExpruneError, UsageError
from exprune_cli.model import Model

_OLDEST_OPSET = 11


def parse_top_k(texts: Sequence[str]) -> dict[str, int]:
    """``OUTPUT=K`` as K by output.

    Raises:
        UsageError: A text has another form, or names an output twice.
    """
    wanted: dict[str, int] = {}
    for text in texts:
        name, equals, number = text.rpartition("=")
        if not equals or not name or not number.isdecimal() or int(number) < 1:
            raise UsageError(f"--top-k {text}: give OUTPUT=K with a K of at least 1, e.g. logits=5")
        if name in wanted:
            raise UsageError(f"--top-k {text}: {name} is named twice")
        wanted[name] = int(number)
    return wanted


def with_top_k(model: Model, wanted: Mapping[str, int]) -> Model:
    """The model with these outputs replaced by their K best values and indices.

    Args:
        model: The model; not changed.
        wanted: K by output.

    Raises:
        UsageError: There is no such output, or it is none that a TopK takes.
        ExpruneError: The model's opset is too old, or it uses the new outputs' names already.
    """
    if not wanted:
        return model
    if model.opset < _OLDEST_OPSET:
        raise ExpruneError(
            f"--top-k needs opset {_OLDEST_OPSET} or newer, the model's is {model.opset}: convert it with onnx.version_converter"
        )
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    graph = proto.graph
    outputs = {value.name: value for value in graph.output}
    taken = {name for node in graph.node for name in node.output} | {v.name for v in graph.input}
    results = [value for value in model.proto.graph.output if value.name not in wanted]
    for name, k in wanted.items():
        if name not in outputs:
            raise UsageError(f"--top-k {name}={k}: the model has no such output; it has {', '.join(outputs)}")
        values, indices, constant = f"{name}_values", f"{name}_indices", f"{name}_k"
        if {values, indices, constant} & taken:
            raise ExpruneError(
                f"--top-k {name}={k}: the model uses the name {values}, {indices} or {constant} already: rename it"
            )
        dims = _dims(outputs[name], f"--top-k {name}={k}", k)
        graph.initializer.append(numpy_helper.from_array(np.array([k], np.int64), constant))
        graph.node.append(
            helper.make_node("TopK", [name, constant], [values, indices], f"{name}_top_k", axis=-1)
        )
        results.append(helper.make_tensor_value_info(values, TensorProto.FLOAT, dims))
        results.append(helper.make_tensor_value_info(indices, TensorProto.INT64, dims))
    del graph.output[:]
    graph.output.extend(results)
    return Model(proto, model.path, model.sha256, model.external)


def _dims(value: onnx.ValueInfoProto, where: str, k: int) -> list[int | str | None]:
    tensor = value.type.tensor_type
    if tensor.elem_type != TensorProto.FLOAT or not tensor.HasField("shape") or not tensor.shape.dim:
        raise UsageError(f"{where}: the output is not a float tensor of known rank: only scores have a best")
    *lead, classes = tensor.shape.dim
    if classes.HasField("dim_value") and classes.dim_value < k:
        raise UsageError(f"{where}: the output has only {classes.dim_value} scores: give a smaller K")
    return [d.dim_value if d.HasField("dim_value") else (d.dim_param or None) for d in lead] + [k]


def as_scores(outputs: Mapping[str, np.ndarray], top_k: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Outputs as a metric wants them: the best index stands for the scores that it was chosen from."""
    result = dict(outputs)
    for name in top_k:
        indices = result.pop(f"{name}_indices", None)
        if indices is not None:
            result = {name: indices[..., 0], **result}
    return result
