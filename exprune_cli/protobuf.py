"""Protobuf messages near and above the 2 GB that one message may have."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import onnx
from google.protobuf.message import EncodeError, Message

#: Protobuf's limit for one message.
MESSAGE_LIMIT = 2**31 - 1


def byte_size(proto: onnx.ModelProto) -> int:
    """Bytes of a model when serialised; for one over 2 GB, which protobuf cannot count, its weights' bytes."""
    try:
        return proto.ByteSize()
    except (EncodeError, ValueError):
        return max(MESSAGE_LIMIT, sum(len(tensor.raw_data) for tensor in proto.graph.initializer))


def model_digest(proto: onnx.ModelProto) -> str:
    """SHA-256 (hex) of a model in memory: of its bytes; over 2 GB, of those without weights, then of the weights."""
    try:
        return hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest()
    except (EncodeError, ValueError):
        pass
    rest = onnx.ModelProto()
    copy_fields(proto, rest, without="graph")
    copy_fields(proto.graph, rest.graph, without="initializer")
    content = hashlib.sha256(rest.SerializeToString(deterministic=True))
    for tensor in proto.graph.initializer:
        content.update(tensor.SerializeToString(deterministic=True))
    return content.hexdigest()


def copy_fields(source: Message, target: Message, without: str | Iterable[str]) -> None:
    """Copies all fields of a message but those named in ``without``."""
    skip = {without} if isinstance(without, str) else set(without)
    for field, value in source.ListFields():
        if field.name in skip:
            continue
        # Asked of the value, not of its descriptor, whose names differ between protobuf's versions.
        if isinstance(value, Message):
            getattr(target, field.name).CopyFrom(value)
        elif hasattr(value, "extend"):
            getattr(target, field.name).extend(value)
        else:
            setattr(target, field.name, value)
