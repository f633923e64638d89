"""Opening ONNX Runtime sessions on models in memory, with additions, quietly."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx

from exprune_cli.available import check_fits
from exprune_cli.custom_ops import libraries
from exprune_cli.errors import ExpruneError
from exprune_cli.external_data import is_external, tensor_bytes
from exprune_cli.interrupts import stoppable
from exprune_cli.onnxruntime_errors import first_line, from_onnxruntime
from exprune_cli.protobuf import MESSAGE_LIMIT, byte_size
from exprune_cli.weights import in_one_folder, kept

if TYPE_CHECKING:
    import onnxruntime

Feeds = Mapping[str, np.ndarray]

#: Larger models go through a temporary folder.
_MESSAGE_LIMIT = MESSAGE_LIMIT
#: Weights below this are not held against the memory that is free.
_MUCH = 2**26
#: Seconds after which a session's threads sleep: they spin for a while when a run is done, and meanwhile take
#: processors from other sessions.
REST = 0.025
#: ONNX Runtime's "fatal only": what it logs comes back as an exception and is printed once.
_QUIET = 4
_UNKNOWN_OPERATOR = "is not a registered function/op"
#: The folder of external data, for models that are not opened by their path, and its first version.
_FOLDER_OPTION = "session.model_external_initializers_file_folder_path"
_FOLDER_SINCE = (1, 21)


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
    """Opens a CPU session; a large staged model without a second layout of its weights, see :func:`packs_weights`.

    Args:
        proto: The model.
        addition: Merged into the model's end (see :mod:`exprune_cli.instrument`).
        threads: Threads inside an operator; 0 for ONNX Runtime's default.
        use_runtime: Whether staged nodes run natively, if the runtime is there.
        where: The model's name in messages.

    Raises:
        ExpruneError: ONNX Runtime cannot load the model.
    """
    weights = sum(tensor_bytes(tensor) or 0 for tensor in proto.graph.initializer if not is_external(tensor))
    if weights > _MUCH:
        # Serialised, and once more in ONNX Runtime. Protobuf crashes where it gets no memory.
        check_fits(2 * weights, where)
    tail = addition.SerializeToString() if addition is not None else b""
    prepack = packs_weights(proto)
    alone = in_one_folder(proto) if kept(proto) and _takes_folder() else None
    if alone is not None:
        return _open(alone[0].SerializeToString() + tail, threads, use_runtime, where, prepack, alone[1])
    if not kept(proto) and byte_size(proto) + len(tail) < _MESSAGE_LIMIT:
        return _open(proto.SerializeToString() + tail, threads, use_runtime, where, prepack)
    from exprune_cli.model import save

    with tempfile.TemporaryDirectory(prefix="exprune-") as folder:
        path = Path(folder) / "model.onnx"
        save(proto, path)
        with path.open("ab") as file:
            file.write(tail)
        return _open(str(path), threads, use_runtime, where, prepack)


def packs_weights(proto: onnx.ModelProto) -> bool:
    """Whether a session may hold weights in a second layout, which makes dense layers faster.

    A dense layer beside a guarded site reads the same weights. In a second layout they would be in memory
    twice, which a large staged model has no room for; without, it can only be slower than it will be.
    """
    from exprune_cli.staged_nodes import has_staged

    return not (kept(proto) and has_staged(proto.graph.node))


def _takes_folder() -> bool:
    """Whether ONNX Runtime finds the external data of a model that it is given as bytes."""
    import onnxruntime

    major, minor = onnxruntime.__version__.split(".")[:2]
    return (int(major), int(minor)) >= _FOLDER_SINCE


def _open(
    source: bytes | str,
    threads: int,
    use_runtime: bool,
    where: str,
    prepack: bool = True,
    folder: Path | None = None,
) -> onnxruntime.InferenceSession:
    import onnxruntime

    from exprune_cli.runtime import check_onnxruntime

    check_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _QUIET
    options.intra_op_num_threads = threads
    if not prepack:
        options.add_session_config_entry("session.disable_prepacking", "1")
    if folder is not None:
        options.add_session_config_entry(_FOLDER_OPTION, str(folder))
    for library in libraries():
        options.register_custom_ops_library(library)
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
        text = first_line(error)
        if _UNKNOWN_OPERATOR in text and not libraries():
            text += " (if it is a custom operator: give its library with --custom-ops)"
        raise ExpruneError(f"{where}: ONNX Runtime cannot load it: {text}") from error


def run(
    session: onnxruntime.InferenceSession,
    feeds: Feeds,
    where: str,
    outputs: Sequence[str] | None = None,
    *,
    seconds: float | None = None,
) -> list[np.ndarray]:
    """Runs a session; a failure names the sample. Ctrl-C ends it wherever it is.

    Args:
        session: The session.
        feeds: Its inputs.
        where: The sample's name in messages.
        outputs: Names of the outputs that are wanted; None for all.
        seconds: After how long it is ended; None for never.

    Raises:
        ExpruneError: The model fails on these inputs, or takes too long.
    """
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.log_severity_level = _QUIET
    start = time.monotonic()
    try:
        with stoppable(options, seconds):
            values: list[np.ndarray] = session.run(list(outputs) if outputs else None, dict(feeds), options)
        return values
    except Exception as error:
        if not from_onnxruntime(error):
            raise
        if seconds is not None and time.monotonic() - start >= seconds:
            raise ExpruneError(f"{where}: the model takes more than {seconds:g} seconds for it") from error
        raise ExpruneError(f"{where}: the model fails on it: {first_line(error)}") from error


def _runtime_available() -> bool:
    from exprune_cli.runtime import runtime_available

    return runtime_available()
