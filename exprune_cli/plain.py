"""Dataclasses from plain data that may be anything: every field's type is checked."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar

_T = TypeVar("_T")
#: Counts and sizes beyond this are no honest ones, and do not fit where they go.
_LARGEST = 2**62


def from_plain(kind: type[_T], data: object, *, ignore_unknown: bool = False) -> _T:
    """Makes a dataclass of a mapping that was read from JSON.

    Args:
        kind: A dataclass whose fields are plain data, or dataclasses of such.
        data: The mapping.
        ignore_unknown: Whether keys that are no fields are left out.

    Raises:
        TypeError: ``data`` is no mapping, a field is missing or unknown, or has another type.
    """
    if not isinstance(data, Mapping):
        raise TypeError(f"{kind.__name__} is no object")
    hints = _hints(typing.cast(Any, kind))
    known = {key: value for key, value in data.items() if key in hints} if ignore_unknown else dict(data)
    for key, value in known.items():
        if key not in hints:
            raise TypeError(f"there is no field {str(key)[:40]!r}")
        if not _is(value, hints[key]):
            raise TypeError(f"field '{key}' has a wrong type or size")
    nested = {key: _nested(value, hints[key]) for key, value in known.items()}
    return kind(**nested)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {item.name: hints[item.name] for item in dataclasses.fields(kind)}


def _is(value: object, hint: Any) -> bool:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint in (Any, object):
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_is(value, part) for part in parts)
    if origin is list:
        return isinstance(value, list) and all(_is(item, parts[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(
            _is(k, parts[0]) and _is(v, parts[1]) for k, v in value.items()
        )
    if dataclasses.is_dataclass(hint):
        return isinstance(value, Mapping)
    if hint is float:
        return type(value) is float or _is(value, int)
    if hint is int:
        return type(value) is int and abs(value) < _LARGEST
    return type(value) is (type(None) if hint is None else hint)


def _nested(value: Any, hint: Any) -> Any:
    parts = typing.get_args(hint)
    if isinstance(value, list) and parts and dataclasses.is_dataclass(parts[0]):
        return [from_plain(typing.cast(type, parts[0]), item) for item in value]
    return value
