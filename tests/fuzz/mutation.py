"""Mutations that know what they mutate: protobuf messages by field, JSON by value, bytes as they come."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

INTEGERS = (0, 1, -1, 2, 3, 7, 64, 255, 2**15, 2**24, 2**31 - 1, 2**31, -(2**31), 2**40, 2**63 - 1, -(2**63))
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-45, 1e-30, 1e30, 3e38, float("inf"), float("-inf"), float("nan"))
TEXTS = (
    "",
    "x",
    "\x1b[31m",
    "<b>",
    "[bold]",
    "../x",
    "/etc/passwd",
    "a" * 300,
    "\u202e",
    "\x00",
    "N",
    "-1",
    "1e999",
)

_FLOAT_KINDS = (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE)


def mutate_message(message: Message, rng: random.Random) -> None:
    """Changes one field somewhere inside a message, in place."""
    every = list(_messages(message))
    # Deep messages are many: choose the kind first, so that rare ones have their turn.
    kind = rng.choice(sorted({type(item).__name__ for item in every}))
    target = rng.choice([item for item in every if type(item).__name__ == kind])
    present = [field for field, _ in target.ListFields()]
    fields = present if present and rng.random() < 0.8 else list(target.DESCRIPTOR.fields)
    field = rng.choice(fields)
    if hasattr(getattr(target, field.name), "extend"):
        _mutate_repeated(target, field, every, rng)
    elif field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
        _mutate_inner(target, field, every, rng)
    elif rng.random() < 0.1:
        target.ClearField(field.name)
    else:
        setattr(target, field.name, _value(field, getattr(target, field.name), every, rng))


def _messages(message: Message) -> Iterator[Message]:
    waiting = [message]
    while waiting:
        item = waiting.pop()
        yield item
        for field, value in item.ListFields():
            if field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
                waiting.extend(value if hasattr(value, "extend") else [value])


def _mutate_repeated(target: Message, field: Any, every: list[Message], rng: random.Random) -> None:
    values = getattr(target, field.name)
    choice = rng.random()
    if len(values) and choice < 0.3:
        del values[rng.randrange(len(values))]
    elif field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
        kind = field.message_type.name
        donors = [item for item in every if type(item).__name__ == kind]
        if donors and choice < 0.8:
            values.add().CopyFrom(_copy(rng.choice(donors)))
        else:
            values.add()
    elif len(values) and choice < 0.8:
        index = rng.randrange(len(values))
        values[index] = _value(field, values[index], every, rng)
    else:
        default = values[0] if len(values) else _default(field)
        values.append(_value(field, default, every, rng))


def _mutate_inner(target: Message, field: Any, every: list[Message], rng: random.Random) -> None:
    donors = [item for item in every if type(item).__name__ == field.message_type.name]
    if donors and rng.random() < 0.7:
        getattr(target, field.name).CopyFrom(_copy(rng.choice(donors)))
    elif rng.random() < 0.5:
        target.ClearField(field.name)
    else:
        getattr(target, field.name).SetInParent()


def _copy(message: Message) -> Message:
    """A copy: a message that is put into itself never ends."""
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


def _default(field: Any) -> Any:
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return b"" if field.type == FieldDescriptor.TYPE_BYTES else ""
    return 0


def _value(field: Any, old: Any, every: list[Message], rng: random.Random) -> Any:
    if field.cpp_type in _FLOAT_KINDS:
        return rng.choice(FLOATS)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return mutate_bytes(bytes(old), rng)
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        names = [text for item in every for text in _texts(item)] if rng.random() < 0.7 else []
        return rng.choice(names or list(TEXTS))
    if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        return rng.choice([value.number for value in field.enum_type.values])
    if field.cpp_type in (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_UINT32):
        value = rng.choice([n for n in INTEGERS if abs(n) < 2**31])
        return abs(value) if field.cpp_type == FieldDescriptor.CPPTYPE_UINT32 else value
    value = old + rng.choice((-1, 1)) if rng.random() < 0.3 and abs(old) < 2**62 else rng.choice(INTEGERS)
    return abs(value) % 2**63 if field.cpp_type == FieldDescriptor.CPPTYPE_UINT64 else value


def _texts(message: Message) -> Iterator[str]:
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_STRING:
            yield from value if hasattr(value, "extend") else [value]


def mutate_bytes(content: bytes, rng: random.Random) -> bytes:
    """Flips, cuts, repeats, inserts or overwrites some bytes."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        if not data:
            return rng.randbytes(rng.choice((1, 4, 64)))
        at, length = rng.randrange(len(data)), rng.choice((1, 1, 2, 4, 8, 64))
        choice = rng.randrange(6)
        if choice == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif choice == 1:
            del data[at : at + length]
        elif choice == 2:
            data[at:at] = data[at : at + length]
        elif choice == 3:
            data[at:at] = rng.randbytes(length)
        elif choice == 4:
            patch = rng.choice(INTEGERS).to_bytes(9, "little", signed=True)[: min(length, 8)]
            data[at : at + len(patch)] = patch
        else:
            del data[at:]
    return bytes(data)


def mutate_json(value: Any, rng: random.Random) -> Any:
    """Changes one value somewhere inside JSON data; returns the new data."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(sorted(value))
        if rng.random() < 0.1:
            return {name: item for name, item in value.items() if name != key}
        return {**value, key: mutate_json(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        index = rng.randrange(len(value))
        if rng.random() < 0.2:
            return value[:index] + value[index + rng.choice((-1, 1)) :]
        return [*value[:index], mutate_json(value[index], rng), *value[index + 1 :]]
    if isinstance(value, bool) and rng.random() < 0.5:
        return not value
    choices: list[Any] = [
        None,
        True,
        [],
        {},
        rng.choice(TEXTS),
        rng.choice(INTEGERS),
        rng.choice(FLOATS),
        10**400,
    ]
    return rng.choice(choices)
