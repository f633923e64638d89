"""Libraries of custom operators that a user's model needs (``--custom-ops``): registered on every session.

Every step opens sessions of its own, so the libraries are part of the context of one call, as decimal's precision is,
and no step has to hand them on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

from exprune_cli.errors import ExpruneError
from exprune_cli.onnxruntime_errors import first_line, from_onnxruntime
from exprune_cli.paths import PathLike
from exprune_cli.runtime import check_onnxruntime

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")
_LIBRARIES: ContextVar[tuple[str, ...]] = ContextVar("exprune custom operators", default=())


def libraries() -> tuple[str, ...]:
    """The libraries to register on a session, as absolute paths."""
    return _LIBRARIES.get()


@contextmanager
def registered(paths: Sequence[PathLike]) -> Iterator[None]:
    """Sessions that are opened in this context have these libraries.

    Raises:
        ExpruneError: There is no such file, or it is no such library.
    """
    # One that is named twice would be refused when it is registered again.
    for path in paths:
        if not os.path.isfile(path):
            raise ExpruneError(f"{os.fspath(path)}: there is no such library of custom operators")
    found = tuple(dict.fromkeys(str(Path(path).resolve()) for path in paths))
    for library in found:
        _try(library)
    token = _LIBRARIES.set(found or _LIBRARIES.get())
    try:
        yield
    finally:
        _LIBRARIES.reset(token)


def _try(library: str) -> None:
    """Loads a library, before any work is done."""
    import onnxruntime

    try:
        onnxruntime.SessionOptions().register_custom_ops_library(library)
    except Exception as error:
        if not from_onnxruntime(error):
            raise
        raise ExpruneError(
            f"{library}: ONNX Runtime cannot load this library of custom operators: {first_line(error)}"
        ) from error


def uses_custom_ops(function: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
    """Gives a function's sessions the libraries of its argument ``custom_ops``.

    It also looks once whether ONNX Runtime is new enough: some steps go on when a session fails.
    """

    @wraps(function)
    def wrapped(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
        check_onnxruntime()
        paths = kwargs.get("custom_ops") or ()
        assert isinstance(paths, Sequence)
        with registered([paths] if isinstance(paths, str) else paths):
            return function(*args, **kwargs)

    return wrapped
