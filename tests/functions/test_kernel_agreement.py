"""The native kernels and the functions take the same decisions, with the kernels' library built."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from cases import CHUNKED, compare, make_case, op_model, run_ort
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

runtime = pytest.importorskip("exprune_cli.runtime")
if not runtime.runtime_available():
    pytest.skip("the runtime is not built", allow_module_level=True)

SAMPLED = settings(
    max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


def _agree(case, opset=17):
    model = op_model(case, opset)
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(runtime.runtime_library()))
    kernel = run_ort(model, case, "all", options)
    function = run_ort(model, case)
    want = compare(case, kernel, kernel=True)
    compare(case, function)
    if case.op.endswith("Bound") or want.unsure.any():
        return
    np.testing.assert_array_equal(kernel[1], function[1])
    if "ArgMax" in case.op and not (want.output == -1).any():
        np.testing.assert_array_equal(kernel[0], function[0])


@pytest.mark.parametrize("op", CHUNKED)
def test_agrees(op):
    for seed in range(5):
        _agree(
            make_case(
                op, seed, lead=(7,), outputs=37, groups=40, chunks=2 + seed % 3, full_offset=seed % 2 == 1
            )
        )


@SAMPLED
@given(st.data())
def test_agrees_on_any_shape(data):
    op = data.draw(st.sampled_from(CHUNKED))
    groups = data.draw(st.integers(2, 40))
    inner = data.draw(st.sets(st.integers(1, groups - 1), min_size=1, max_size=3))
    rank = data.draw(st.sampled_from([1, 2]))
    conv = "Conv" in op
    lead = (data.draw(st.integers(0, 3)),) if conv else data.draw(st.sampled_from([(0,), (1,), (9,), (2, 3)]))
    case = make_case(
        op,
        data.draw(st.integers(0, 999)),
        lead=lead,
        outputs=data.draw(st.integers(1, 40)),
        groups=groups,
        ends=[*sorted(inner), groups],
        full_offset=data.draw(st.booleans()),
        ceiling=data.draw(st.sampled_from([np.inf, 0.5])),
        size=[data.draw(st.integers(5, 20)) for _ in range(rank)],
        kernel=[data.draw(st.integers(1, 3)) for _ in range(rank)],
        strides=[data.draw(st.integers(1, 2)) for _ in range(rank)],
        dilations=[data.draw(st.integers(1, 2)) for _ in range(rank)],
        pads=[data.draw(st.integers(0, 2)) for _ in range(2 * rank)],
        keepdims=data.draw(st.integers(0, 1)),
        select_last_index=data.draw(st.integers(0, 1)),
        z=data.draw(st.sampled_from([-2.0, -0.5, 0.0])),
    )
    x = case.inputs["X"]
    if x.size and data.draw(st.integers(0, 4)) == 0:
        x.reshape(-1)[data.draw(st.integers(0, x.size - 1))] = data.draw(
            st.sampled_from([np.nan, np.inf, -np.inf])
        )
    _agree(case)
