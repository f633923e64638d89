"""Opening ONNX Runtime sessions on models in memory, with additions, quietly."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx

from exprune_cli.errors import ExpruneError
from exprune_cli.protobuf import MESSAGE_LIMIT, byte_size

if TYPE_CHECKING:
    import onnxruntime

Feeds = Mapping[str, np.ndarray]

#: Larger models go through a temporary folder.
_MESSAGE_LIMIT = MESSAGE_LIMIT
#: Seconds after which a session's threads sleep: they spin for a while when a run is done, and meanwhile take
#: processors from other sessions.
REST = 0.025
#: ONNX Runtime's "fatal only": what it logs comes back as an exception and is printed once.
_QUIET = 4


def runtime_kind(proto: onnx.ModelProto, use_runtime: bool = True) -> str | None:
    """How a model's staged nodes run: ``native``, ``function``, or None if there are none."""
    from exprune_cli.staged_nodes import has_staged

    if not has_staged(proto.graph.node):
        return None
    return "native" if use_runtime and _runtime_available() else "function"


def open_session(
    proto: onnx.ModelProto,
    *,
    addition: onnx.ModelProto | None = None,
    threads: int = 0,
    use_runtime: bool = True,
    where: str = "the model",
) -> onnxruntime.InferenceSession:
    """Opens a CPU session.

    Args:
        proto: The model.
        addition: Merged into the model's end (see :mod:`exprune_cli.instrument`).
        threads: Threads inside an operator; 0 for ONNX Runtime's default.
        use_runtime: Whether staged nodes run natively, if the runtime is there.
        where: The model's name in messages.

    Raises:
        ExpruneError: ONNX Runtime cannot load the model.
    """
    tail = addition.SerializeToString() if addition is not None else b""
    if byte_size(proto) + len(tail) < _MESSAGE_LIMIT:
        return _open(proto.SerializeToString() + tail, threads, use_runtime, where)
    from exprune_cli.model import save

    with tempfile.TemporaryDirectory(prefix="exprune-") as folder:
        path = Path(folder) / "model.onnx"
        save(proto, path)
        with path.open("ab") as file:
            file.write(tail)
        return _open(str(path), threads, use_runtime, where)


def _open(source: bytes | str, threads: int, use_runtime: bool, where: str) -> onnxruntime.InferenceSession:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _QUIET
    options.intra_op_num_threads = threads
    if threads == 1:
        options.inter_op_num_threads = 1
    try:
        if use_runtime and _runtime_available():
            from exprune_cli.runtime import session

            return session(source, sess_options=options, providers=["CPUExecutionProvider"])
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        if not from_onnxruntime(error):
            raise
        raise ExpruneError(f"{where}: ONNX Runtime cannot load it: {first_line(error)}") from error


def run(
    session: onnxruntime.InferenceSession, feeds: Feeds, where: str, outputs: Sequence[str] | None = None
) -> list[np.ndarray]:
    """Runs a session; a failure names the sample.

    Raises:
        ExpruneError: The model fails on these inputs.
    """
    try:
        values: list[np.ndarray] = session.run(list(outputs) if outputs else None, dict(feeds))
        return values
    except Exception as error:
        if not from_onnxruntime(error):
            raise
        raise ExpruneError(f"{where}: the model fails on it: {first_line(error)}") from error


def from_onnxruntime(error: Exception) -> bool:
    """Whether ONNX Runtime raised it. It has a type of its own for every status code."""
    own = type(error).__module__.startswith("onnxruntime")
    return own or (
        isinstance(error, (RuntimeError, ValueError)) and not isinstance(error, NotImplementedError)
    )


def first_line(error: BaseException) -> str:
    """The first line of an ONNX Runtime message, without its status code's prefix."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return text.split(" : ", 3)[-1] if text.startswith("[ONNXRuntimeError]") else text


def _runtime_available() -> bool:
    from exprune_cli.runtime import runtime_available

    return runtime_available()
