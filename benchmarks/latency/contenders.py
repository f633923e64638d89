"""The ways to run a model that are compared: ONNX Runtime as it is, its quantisers, and exprune."""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

import exprune_cli
from benchmarks.latency.case import Case
from exprune_cli.errors import ExpruneError
from exprune_cli.fusion import fuse
from exprune_cli.model import load, save

_log = logging.getLogger(__name__)

#: Samples that the calibrated form is made from.
SAMPLES = 512


def make(case: Case, folder: Path, wanted: Sequence[str] | None = None) -> dict[str, Path]:
    """Writes every contender's model; those that cannot be made are left out, with a log entry.

    ``wanted``: the only ones that are made, beside the dense model and what one of them is made from.
    """
    dense = folder / "dense.onnx"
    case.build(dense)
    makers: dict[str, Callable[[Path, Path], None]] = {
        "dynamic int8": dynamic_int8,
        "MatMulNBits 8": nbits,
        "lossless": lossless,
        "lossless, rest 8 bits": lambda source, target: nbits(folder / "lossless.onnx", target),
    }
    if case.metric is not None:
        makers["calibrated"] = lambda source, target: calibrated(case, source, target, folder)
    if case.fused:
        makers["fused alone"] = fused
    if case.limit is not None:
        makers["without what can be staged"] = case.limit
    made = {"dense": dense}
    for name, maker in makers.items():
        if wanted and not any(one.startswith(name) for one in wanted):
            continue
        target = folder / f"{name}.onnx"
        try:
            maker(dense, target)
            made[name] = target
        except (ExpruneError, ImportError, ValueError, RuntimeError) as error:
            _log.warning("%s: %s is left out: %s", case.name, name, str(error).splitlines()[0])
    return made


def dynamic_int8(source: Path, target: Path) -> None:
    """ONNX Runtime's dynamic quantisation of every MatMul and Gemm, 8-bit weights."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with quiet():
        quantize_dynamic(source, target, weight_type=QuantType.QInt8, per_channel=True)


def nbits(source: Path, target: Path) -> None:
    """ONNX Runtime's weight-only quantisation to 8 bits; staged nodes are no MatMuls and stay."""
    from onnxruntime.quantization.matmul_nbits_quantizer import (
        DefaultWeightOnlyQuantConfig,
        MatMulNBitsQuantizer,
    )

    config = DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=True, accuracy_level=4, bits=8)
    with quiet():
        quantizer = MatMulNBitsQuantizer(onnx.load(source), algo_config=config)
        quantizer.process()
    onnx.save(quantizer.model.model, target)


def lossless(source: Path, target: Path) -> None:
    """``exprune optimize`` as it is, without samples."""
    exprune_cli.optimize(source, target)


def fused(source: Path, target: Path) -> None:
    """What is fused around the sites, and nothing staged."""
    save(fuse(load(source)).model.proto, target)


def calibrated(case: Case, source: Path, target: Path, folder: Path) -> None:
    """``exprune optimize`` with samples and a drop of 0.001 of the metric."""
    data = folder / "data"
    data.mkdir()
    samples = [feeds["x"] for feeds in itertools.islice(case.feeds(64, 99), SAMPLES // 64)]
    np.save(data / "x.npy", np.concatenate(samples))
    exprune_cli.optimize(source, target, data=data, metric=case.metric, max_drop=0.001)


@contextlib.contextmanager
def quiet():
    """The quantisers log every node that they look at."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    """A session with exprune's kernels, which change nothing for a model without them."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return exprune_cli.session(path, options)
