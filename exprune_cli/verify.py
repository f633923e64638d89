"""Checks an output model before it is written: valid, same interface, and it loads."""

from __future__ import annotations

import onnx

from exprune_cli.errors import ExpruneError
from exprune_cli.model import Model
from exprune_cli.protobuf import byte_size
from exprune_cli.weights import kept, without_weights

#: Above this size the checker would need the model on disk: it sees it without its weights.
_LARGE = 2**31 - 2**24


def verify(original: Model, proto: onnx.ModelProto) -> None:
    """Checks that a staged model is valid and has its original's interface.

    Raises:
        ExpruneError: It is not; nothing has been written yet, so nothing is lost.
    """
    for what, before, after in (
        ("inputs", _fed(original.proto), _fed(proto)),
        ("outputs", list(original.proto.graph.output), list(proto.graph.output)),
    ):
        if [v.SerializeToString() for v in before] != [v.SerializeToString() for v in after]:
            raise ExpruneError(f"internal error: staging changed the model's {what}; please report this")
    try:
        _check(proto)
    except Exception as error:  # the checker raises several unrelated types
        if _was_valid(original.proto):
            raise ExpruneError(
                f"internal error: the staged model is not valid: {error}; please report this"
            ) from error


def _check(proto: onnx.ModelProto) -> None:
    large = kept(proto) or byte_size(proto) >= _LARGE
    onnx.checker.check_model(without_weights(proto) if large else proto, full_check=True)


def _was_valid(proto: onnx.ModelProto) -> bool:
    try:
        _check(proto)
    except Exception:  # noqa: BLE001  the checker raises several unrelated types
        return False
    return True


def _fed(proto: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    constants = {tensor.name for tensor in proto.graph.initializer}
    return [value for value in proto.graph.input if value.name not in constants]
