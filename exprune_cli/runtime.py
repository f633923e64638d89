"""The native custom-op library: where it is, and sessions that use it.

The library is optional. Every staged operator also has a function body in the model, so a session without
the library computes the same results, more slowly.

The kernels are those of the best instruction set that the processor has. The environment variable
``EXPRUNE_ISA`` (``avx512``, ``avx2``, ``portable``, ``scalar``) names others, before the library is loaded;
one that the processor lacks falls back to the best below it.
"""

from __future__ import annotations

import ctypes
import os
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from .errors import ExpruneError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

    from .model import ModelSource

#: Name of the library file, beside this module. ONNX Runtime loads it by path, so one name does everywhere.
LIBRARY = "_runtime.so"

#: The first ONNX Runtime whose custom-op interface the library is written for.
OLDEST_ONNXRUNTIME = (1, 17)

#: Beside it instead, when the installation could not build it: the reason.
MISSING_NOTE = "_runtime_missing.txt"


def runtime_available() -> bool:
    """Whether the library was built and is part of this installation."""
    return (Path(__file__).parent / LIBRARY).is_file()


def runtime_library() -> Path:
    """Path of the library, for ``SessionOptions.register_custom_ops_library``.

    Raises:
        ExpruneError: The library was not built.
    """
    path = Path(__file__).resolve().parent / LIBRARY
    if not path.is_file():
        note = path.with_name(MISSING_NOTE)
        reason = (
            note.read_text(encoding="utf-8").strip() if note.is_file() else "not part of this installation"
        )
        raise ExpruneError(
            f"the native runtime was not built ({reason}): reinstall exprune where a C++ compiler is; "
            "models run without it, slower"
        )
    return path


def runtime_info() -> str:
    """What the library says of itself, e.g. ``exprune 0.1.0 isa=avx512``.

    Raises:
        ExpruneError: The library was not built, or cannot be loaded here.
    """
    return _info(str(runtime_library()))


def kernels_name() -> str:
    """The instruction set of the kernels in use, e.g. ``avx512vnni``; ``unknown`` without a library."""
    try:
        return runtime_info().rpartition("isa=")[2] or "unknown"
    except ExpruneError:
        return "unknown"


@cache
def _info(path: str) -> str:
    try:
        info = ctypes.CDLL(path).exprune_runtime_info
    except (OSError, AttributeError) as error:
        raise ExpruneError(
            f"the native runtime cannot be loaded ({error}): reinstall exprune on this machine"
        ) from error
    info.restype = ctypes.c_char_p
    text: bytes = info()
    return text.decode()


def check_onnxruntime() -> None:
    """Checks that the installed ONNX Runtime is one that the library and the functions work on.

    Raises:
        ExpruneError: It is too old.
    """
    import onnxruntime

    version = onnxruntime.__version__
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_ONNXRUNTIME:
        oldest = ".".join(map(str, OLDEST_ONNXRUNTIME))
        raise ExpruneError(
            f"ONNX Runtime {version} is too old: exprune needs {oldest} or newer (pip install -U onnxruntime)"
        )


@cache
def _registered() -> WeakSet[Any]:
    """Options that have the library: registering it twice on the same ones makes every session fail."""
    return WeakSet()


def session(
    model: ModelSource,
    sess_options: Any = None,
    *,
    use_runtime: bool = True,
    **kwargs: Any,
) -> InferenceSession:
    """An ``onnxruntime.InferenceSession`` with the native runtime registered.

    Args:
        model: Path, serialised model, or ``onnx.ModelProto``.
        sess_options: ``onnxruntime.SessionOptions`` to use; the library is registered on them unless it
            already was by this function. They are made where None.
        use_runtime: False for a session that runs the function bodies. Without a library that is what
            happens in any case.
        kwargs: Passed to ``InferenceSession``; ``providers`` defaults to the CPU's.

    Returns:
        The session.

    Raises:
        onnxruntime exceptions: Whatever ONNX Runtime has against the model.
    """
    import onnxruntime

    check_onnxruntime()
    options = onnxruntime.SessionOptions() if sess_options is None else sess_options
    if use_runtime and runtime_available() and options not in _registered():
        options.register_custom_ops_library(str(runtime_library()))
        _registered().add(options)
    kwargs.setdefault("providers", ["CPUExecutionProvider"])
    if isinstance(model, (bytes, str, os.PathLike)):
        return onnxruntime.InferenceSession(
            model if isinstance(model, bytes) else os.fspath(model), options, **kwargs
        )
    from .protobuf import MESSAGE_LIMIT
    from .weights import kept, model_bytes

    if not kept(model) and model_bytes(model) < MESSAGE_LIMIT:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, **kwargs)
    from .model import save

    with tempfile.TemporaryDirectory(prefix="exprune-") as folder:
        save(model, Path(folder) / "model.onnx")
        return onnxruntime.InferenceSession(str(Path(folder) / "model.onnx"), options, **kwargs)
