"""Every function against the plain oracle, in everything that is meant to run a staged file."""

from __future__ import annotations

import cases
import numpy as np
import onnx
import pytest
from cases import CHUNKED, RUNNERS, compare, make_case, op_model, run_ort, run_reference
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exprune_cli.errors import UsageError
from exprune_cli.functions import DOMAIN, MIN_OPSET, OPS, function_proto

GEMM = [op for op in CHUNKED if "Gemm" in op and op != "SparseGemm"]
CONV = [op for op in CHUNKED if "Conv" in op]
HEADS = [op for op in CHUNKED if "ArgMax" in op]
OPSETS = (11, 13, 17, 18, 21, 25)

SAMPLED = settings(
    max_examples=120, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("op", CHUNKED)
def test_runs_everywhere(op, opset):
    for branch in (False, True):
        case = make_case(op, opset, select_last_index=1, keepdims=opset % 2, full_offset=branch)
        model = op_model(case, opset, branch)
        onnx.checker.check_model(model, full_check=True)
        for run in RUNNERS.values():
            compare(case, run(model, case))


def test_decides_something():
    """The cases above are worth their time: every staged op prunes some outputs and keeps some."""
    for op in GEMM + CONV + HEADS:
        if op == "ConvRelu":
            continue
        outcome = make_case(op, 17, groups=24, ends=[12, 23, 24]).oracle()
        everything = outcome.distance[0].size
        assert 0 < outcome.survivors[len(outcome.distance) - 1] < everything, op
        assert outcome.unsure.mean() < 0.02


@pytest.mark.parametrize("op", OPS)
def test_explains_itself(op):
    proto = function_proto(op, 17)
    assert (proto.name, proto.domain) == (op, DOMAIN)
    assert [(i.domain, i.version) for i in proto.opset_import] == [("", 17)]
    assert proto.output[-1] == "survivors"
    assert proto.doc_string.count(". ") >= 1 and proto.doc_string.endswith(".")


def test_says_what_it_cannot_make():
    with pytest.raises(UsageError, match=r"no op com\.exprune\.Nothing"):
        function_proto("Nothing", 17)
    with pytest.raises(ValueError, match="opset"):
        function_proto(OPS[0], MIN_OPSET - 1)


def test_unused_survivors_may_be_left_out():
    for op in CHUNKED:
        case = make_case(op, 2)
        model = op_model(case, 17)
        model.graph.node[0].output[1] = ""
        del model.graph.output[1]
        onnx.checker.check_model(model, full_check=True)
        (output,) = run_ort(model, case)
        np.testing.assert_array_equal(output, run_ort(op_model(case, 17), case)[0])


def _check(case, opset=17, reference=True):
    model = op_model(case, opset)
    compare(case, run_ort(model, case))
    if reference:
        compare(case, run_reference(model, case))


def _poison(data, case):
    """Maybe put NaN or infinity somewhere into X."""
    x = case.inputs["X"]
    if x.size and data.draw(st.booleans()):
        for value in data.draw(st.lists(st.sampled_from([np.nan, np.inf, -np.inf]), max_size=2)):
            x.reshape(-1)[data.draw(st.integers(0, x.size - 1))] = value


def _chunks(data):
    groups = data.draw(st.integers(2, 14))
    inner = data.draw(st.sets(st.integers(1, groups - 1), min_size=1, max_size=3))
    return groups, [*sorted(inner), groups]


LEADS = st.sampled_from([(0,), (1,), (5,), (2, 3), (1, 1), ()])


@SAMPLED
@given(st.data())
def test_any_gemm(data):
    groups, ends = _chunks(data)
    case = make_case(
        data.draw(st.sampled_from(GEMM)),
        data.draw(st.integers(0, 99)),
        lead=data.draw(LEADS),
        outputs=data.draw(st.integers(1, 7)),
        groups=groups,
        ends=ends,
        full_offset=data.draw(st.booleans()),
        ceiling=data.draw(st.sampled_from([np.inf, 6.0, 0.25])),
        z=data.draw(st.sampled_from([-2.0, -0.5, 0.0, 0.7])),
    )
    _poison(data, case)
    _check(case)


@SAMPLED
@given(st.data())
def test_any_conv(data):
    groups, ends = _chunks(data)
    rank = data.draw(st.sampled_from([1, 2]))

    def per_axis(low, high, count=rank):
        return [data.draw(st.integers(low, high)) for _ in range(count)]

    batch = data.draw(st.sampled_from([0, 1, 2]))
    case = make_case(
        data.draw(st.sampled_from(CONV)),
        data.draw(st.integers(0, 99)),
        lead=(batch,),
        outputs=data.draw(st.integers(1, 5)),
        groups=groups,
        ends=ends,
        size=per_axis(5, 7),
        kernel=per_axis(1, 3),
        strides=per_axis(1, 2),
        dilations=per_axis(1, 2),
        pads=per_axis(0, 1, 2 * rank),
        full_offset=data.draw(st.booleans()),
        ceiling=data.draw(st.sampled_from([np.inf, 6.0, 0.25])),
        z=data.draw(st.sampled_from([-2.0, -0.5, 0.0, 0.7])),
    )
    if batch:
        _poison(data, case)
    # the reference evaluator dilates a kernel with zeros, and zero times NaN is NaN
    spread = max(case.attributes["dilations"]) > 1 and not np.isfinite(case.inputs["X"]).all()
    _check(case, reference=not spread)


@SAMPLED
@given(st.data())
def test_any_head(data):
    groups, ends = _chunks(data)
    case = make_case(
        data.draw(st.sampled_from(HEADS)),
        data.draw(st.integers(0, 99)),
        lead=data.draw(LEADS),
        outputs=data.draw(st.integers(1, 9)),
        groups=groups,
        ends=ends,
        keepdims=data.draw(st.integers(0, 1)),
        select_last_index=data.draw(st.integers(0, 1)),
        z=data.draw(st.sampled_from([-2.0, -0.5, 0.0, 0.7])),
    )
    _poison(data, case)
    _check(case, data.draw(st.sampled_from([11, 17])))


@pytest.mark.parametrize("lead", [(0,), (1,), (2, 3), ()])
@pytest.mark.parametrize("opset", [11, 17])
def test_sparse_counts_exactly(lead, opset):
    case = make_case("SparseGemm", 1, lead=lead)
    if case.inputs["X"].size:
        case.inputs["X"].reshape(-1)[:3] = [np.nan, -0.0, 1e-40]
    _check(case, opset)


@pytest.mark.parametrize("op", ["PrefixGemmThreshold", "PrefixConvThreshold", "PrefixConvBlock"])
def test_decided_outputs_cost_no_further_chunk(op):
    """All decided after the first chunk: later inputs are not even looked at."""
    case = make_case(op, 3, groups=8, ends=[3, 5, 8])
    case.inputs["limit"][0] = np.inf
    late = case.inputs["order"][3:]
    if "Conv" in op:
        case.inputs["X"][:, late] = np.nan
    else:
        case.inputs["X"][..., late] = np.nan
    for run in RUNNERS.values():
        y, survivors = run(op_model(case, 17), case)
        assert survivors.tolist() == [0, 0]
        np.testing.assert_array_equal(y, np.zeros_like(y))


def test_decided_row_keeps_its_class():
    """A row with one class left has its index, even where its later sums are NaN."""
    case = make_case("PrefixArgMaxThreshold", 0, lead=(2,), outputs=3, groups=4, ends=[1, 4])
    case.inputs |= {
        "X": np.array([[1, np.nan, 1, 1], [0, 1, 1, 1]], np.float32),
        "order": np.arange(4),
        "W_head": np.array([[0], [0], [9]], np.float32),
        "W_tail": np.array([[0, 0, 0], [1, 1, 1], [0, 0, 0]], np.float32),
        "bias": np.zeros(3, np.float32),
        "scale": np.ones((1, 3), np.float32),
        "shift": np.zeros((1, 3), np.float32),
        "margin": np.ones((1, 3), np.float32),
    }
    for run in RUNNERS.values():
        index, survivors = run(op_model(case, 17), case)
        assert index.tolist() == [2, 1]
        assert survivors.tolist() == [3]


@pytest.mark.parametrize("opset", [11, 12, 25])
@pytest.mark.parametrize("op", HEADS)
def test_equal_classes(op, opset):
    """Exact ties go to the first class, or to the last where the model asks for that."""
    for last in (0, 1):
        case = make_case(op, 5, lead=(6,), outputs=4, groups=4, ends=[2, 4], select_last_index=last)
        for name in ("X", "W_head", "W_tail", "bias"):
            case.inputs[name] = np.round(case.inputs[name])
        for name in ("W_head", "W_tail", "bias"):
            case.inputs[name][2:] = case.inputs[name][:2]
        for name in {"scale", "shift", "margin"} & set(case.inputs):
            case.inputs[name][:] = {"scale": 1, "shift": 0, "margin": 20}[name]
        want = (
            (case.inputs["X"][:, case.inputs["order"]])
            @ np.concatenate([case.inputs["W_head"], case.inputs["W_tail"]], axis=1).T
            + case.inputs["bias"]
        )
        index = 3 - want[:, ::-1].argmax(axis=1) if last else want.argmax(axis=1)
        for run in (run_ort, run_reference):
            got = run(op_model(case, opset), case)[0]
            if not op.endswith("Stats"):
                np.testing.assert_array_equal(got, index)
            else:  # the test may be wrong about the winner, never about which of equals it takes
                assert ((got >= 2) == bool(last)).all()


def test_head_with_nan_is_the_dense_head():
    """Where nothing is pruned, NaN and infinite scores give the index that ArgMax gives."""
    case = make_case("PrefixArgMaxThreshold", 1, lead=(4,), outputs=5)
    case.inputs["margin"][:] = 1e30
    case.inputs["X"][0, 0] = np.nan
    dense = make_case("PrefixArgMaxBound", 1, lead=(4,), outputs=5)
    for bias in ([np.nan, 0, 0, 0, 0], [0, 9, np.nan, 0, 9], [-np.inf] * 5, [0, np.inf, 0, np.inf, 0]):
        for each in (case, dense):
            each.inputs["bias"] = np.array(bias, np.float32)
            each.inputs["X"] = case.inputs["X"]
        got = run_ort(op_model(case, 17), case)[0]
        np.testing.assert_array_equal(got, run_ort(op_model(dense, 17), dense)[0])


@pytest.mark.parametrize("op", CHUNKED)
def test_shape_inference_finds_the_rank(op):
    case = make_case(op, 1)
    model = op_model(case, 17)
    node = model.graph.node[0]
    node.output[0] = "inner"
    model.graph.node.append(onnx.helper.make_node("Identity", ["inner"], [model.graph.output[0].name]))
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    shapes = {v.name: v.type.tensor_type for v in inferred.graph.value_info}
    if op in ("PrefixArgMaxThreshold", "PrefixArgMaxStats"):
        return  # keepdims decides the rank of what comes out of a Loop: the file's value_info has it
    assert len(shapes["inner"].shape.dim) == case.oracle().output.ndim


def test_survivors_stay_int64_vectors():
    for op in CHUNKED:
        case = make_case(op, 4, groups=2, ends=[1, 2]) if op != "SparseGemm" else make_case(op)
        for run in cases.RUNNERS.values():
            # Nothing is tested in a ConvRelu; a SparseConv also reports the work of its two chunks.
            numbers = {"ConvRelu": 0, "SparseConvThreshold": 3}.get(op, 1)
            assert run(op_model(case, 17), case)[1].shape == (numbers,)
