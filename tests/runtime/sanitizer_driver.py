"""What runs in a process of its own with a library that was built with sanitizers.

``python -m tests.runtime.sanitizer_driver address|thread LIB`` prints ``clean`` at its end.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from exprune_cli.functions import OPS

from .cases import KINDS, run
from .ops import model, open_session, valid
from .quantized import BAD, good, run_quantized
from .test_block_conv import BAD_BLOCKS, BLOCK_OPS, CASES, block_inputs, exact_inputs, inputs_of
from .test_door import BAD_CONV, BAD_GEMM, CONV, conv_inputs, gemm_inputs
from .test_dynamic_block_conv import BAD_DYNAMIC
from .test_low_rank import case as low_rank_case
from .test_low_rank import run as run_low_rank
from .test_packed import relu_call, sparse_call
from .test_packed import run as run_constant
from .test_panel_conv import BAD as BAD_PANELS
from .test_panel_conv import CASES as PANELS
from .test_panel_conv import panel_inputs
from .test_sessions import case


def address(library: str) -> None:
    """Every op with good and with bad input."""
    for family in ("Gemm", "Conv", "ArgMax"):
        for kind in KINDS:
            op, inputs, attributes = case(family, kind)
            x = inputs["X"]
            views = [x[:1, :, :5, :4], x[:0]] if family == "Conv" else [x[:1], x[:5], x[:19], x[:0]]
            for view in views:
                run(library, op, {**inputs, "X": np.ascontiguousarray(view)}, threads=2, **attributes)
    for columns in (1, 37):
        w, bias = np.ones((50, columns), np.float32), np.ones(columns, np.float32)
        run(library, "SparseGemm", {"X": np.ones((3, 50), np.float32), "W": w, "bias": bias})
    for kind in ("Gemm", "ArgMax", "TopK"):
        for bits in (6, 8):
            for rows in (1, 5, 19, 0):
                run_quantized(
                    library, kind, good(kind, rows=rows, outputs=70, groups=300, bits=bits), threads=2
                )
        for name, (where, value) in BAD.items():
            if kind == "TopK" or where != "k":
                try:
                    run_quantized(library, kind, {**good(kind), where: value})
                except Exception as error:  # noqa: BLE001 - ONNX Runtime has one class per code
                    assert f"Quantized{kind}Bound: {where}" in str(error), error
                else:
                    raise SystemExit(f"Quantized{kind}Bound took {name}")
    for make in (sparse_call, relu_call):
        for rows in (2, 13, 70):
            for sizes in ((40, 70), (600, 33)):
                run_constant(library, make(np.random.default_rng(rows), rows, *sizes, 1.0), threads=2)
    for kind in ("Gemm", "ArgMax", "CascadeGemm", "CascadeArgMax"):
        for rows in (1, 5, 19, 0):
            run_low_rank(library, kind, low_rank_case(kind, 0, (rows,), outputs=70, full=True), threads=2)
    for sizes in CASES:
        for batch in (1, 5):
            inputs, attributes = block_inputs(**sizes, batch=batch)
            for op in BLOCK_OPS:
                run(library, op, inputs_of(op, inputs), threads=2, **attributes)
    for sizes in PANELS:
        for batch in (1, 3):
            inputs, attributes = panel_inputs(**sizes, batch=batch)
            run(library, "PrefixConvPanel", inputs, threads=2, **attributes)
            run(library, "ConvReluPanel", exact_inputs(inputs), threads=2, **attributes)
    dynamic = "DynamicPrefixConvBlock"
    for op, bad, inputs, attributes in (
        ("PrefixConvBlock", BAD_BLOCKS, *block_inputs()),
        (dynamic, BAD_DYNAMIC, inputs_of(dynamic, block_inputs()[0]), block_inputs()[1]),
        ("PrefixConvPanel", BAD_PANELS, *panel_inputs()),
        ("PrefixGemmThreshold", BAD_GEMM, gemm_inputs(), {}),
        ("PrefixConvThreshold", BAD_CONV, conv_inputs(), CONV),
    ):
        for where, value in bad.values():
            try:
                run(library, op, {**inputs, where: value}, **attributes)
            except Exception as error:  # noqa: BLE001 - ONNX Runtime has one class per code
                assert op in str(error), error
            else:
                raise SystemExit(f"{op} took a bad {where}")


def thread(library: str) -> None:
    """Every op: four runs of one session at a time, each on three threads."""
    for op in OPS:
        calls = (valid(op, np.random.default_rng(seed)) for seed in range(200))
        for call in [c for c in calls if c.inputs["X"].size >= 100][:3]:
            at_the_same_time(open_session(model(call, function=False), library, 3, arena=False), call.inputs)
    for make in (sparse_call, relu_call):  # the first runs pack the weights
        call = make(np.random.default_rng(0), 40, 64, 300, 1.0)
        data = model(call, constants=True, function=False)
        at_the_same_time(open_session(data, library, 3, arena=False), {"X": call.inputs["X"]})


def at_the_same_time(session, inputs) -> None:
    """Four runs of one session at a time, which give the same."""
    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(lambda _: session.run(None, inputs), range(8))
    for other in others:
        for a, b in zip(first, other, strict=True):
            np.testing.assert_array_equal(a, b)


if __name__ == "__main__":
    {"address": address, "thread": thread}[sys.argv[1]](sys.argv[2])
    print("clean")
