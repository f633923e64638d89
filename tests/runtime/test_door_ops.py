"""Every op and every input of it: other shapes, other types, none at all, and integers that make no sense.

An error when the session is made or when it runs, that names the op; never a crash. Then the same session goes on.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from exprune_cli.functions import OPS

from .ops import HEADS, Call, model, open_session
from .test_numbers import call_of

BIG = 2**63 - 1


def shapes(value: np.ndarray) -> dict[str, np.ndarray]:
    """The array in shapes that are not its own."""
    others = {
        "a dimension more": value[None],
        "no dimension": np.zeros((), value.dtype),
        "empty": value[:0],
        "huge and empty": np.zeros((2**40, *value.shape[1:-1], 0), value.dtype),
    }
    for axis in range(value.ndim):
        others[f"one more on axis {axis}"] = np.concatenate([value, value.take([0], axis)], axis)
        others[f"one less on axis {axis}"] = value.take(range(value.shape[axis] - 1), axis)
    if value.ndim > 1:
        others["a vector"] = value.reshape(-1)
    return {what: np.ascontiguousarray(v).reshape(v.shape) for what, v in others.items()}


#: What is right for some inputs: one element of any shape, and X of other sizes.
FINE = {name: ("a dimension more", "no dimension") for name in ("offset", "max", "k")}
FINE["X"] = ("a dimension more", "empty", "one more on axis 0", "one less on axis 0")
_SESSIONS: dict = {}


def session_of(call: Call, library: str):
    key = (call.op, library)
    if key not in _SESSIONS:
        _SESSIONS[key] = open_session(model(call, function=False), library)
    return _SESSIONS[key]


def case(op: str) -> Call:
    """A call in which every dimension counts."""
    call = call_of(op)
    if "offset" in call.inputs:
        call.inputs["offset"] = np.zeros(1, np.float32)
    return call


@pytest.mark.parametrize("op", OPS)
def test_shapes(best_library, op):
    session = session_of(case(op), best_library)
    expected = session.run(None, case(op).inputs)
    for name in case(op).inputs:
        for what, value in shapes(case(op).inputs[name]).items():
            call = case(op)
            conv_x = name == "X" and "Conv" in op
            if what in FINE.get(name, ()) and not (conv_x and what == "a dimension more"):
                continue
            if conv_x and what.startswith(("one more on axis", "one less on axis")) and what[-1] != "1":
                continue  # another image
            kernel = "12" if op == "SparseConvThreshold" or op.endswith("Panel") else "23"
            if name == "W" and "Conv" in op and what.startswith("one") and what[-1] in kernel:
                continue  # another kernel
            if op == "ConvReluPanel" and name == "bias" and what.startswith("one"):
                continue  # another number of outputs in as many panels
            call.inputs[name] = value
            with pytest.raises(Exception, match=f"{op}: "):
                session.run(None, call.inputs)
                print("took", op, name, what)
    for a, b in zip(session.run(None, case(op).inputs), expected, strict=True):
        np.testing.assert_array_equal(a, b)


INTEGERS = {
    "order": lambda v: [
        _with(v, 0, v[1]),
        _with(v, 0, -1),
        _with(v, 0, len(v)),
        _with(v, 0, BIG),
        _with(v, 0, -BIG),
    ],
    "ends": lambda v: [
        _with(v, 0, 0),
        _with(v, 0, -1),
        _with(v, 0, v[-1]),
        _with(v, 0, BIG),
        _with(v, -1, v[-1] + 1),
        _with(v, -1, v[-1] - 1),
        _with(v, -1, -BIG),
    ],
    "k": lambda v: [_with(v, 0, x) for x in (0, -1, 65, 2**31, 2**32 + 1, BIG, -BIG)],
    "block": lambda v: [_with(v, 0, x) for x in (0, -1, 2**31, 2**32 + 1, BIG, -BIG)],
}


def _with(values: np.ndarray, at: int, value: int) -> np.ndarray:
    changed = values.copy()
    changed[at] = value
    return changed


@pytest.mark.parametrize("op", OPS)
def test_integers(best_library, op):
    session = session_of(case(op), best_library)
    for name in set(INTEGERS) & set(case(op).inputs):
        for value in INTEGERS[name](case(op).inputs[name]):
            with pytest.raises(Exception, match=f"{op}: {name}"):
                session.run(None, {**case(op).inputs, name: value})


@pytest.mark.parametrize("op", OPS)
def test_inputs_of_another_type_and_none(best_library, op):
    call = case(op)
    proto = onnx.load_from_string(model(call, function=False))
    for i, name in enumerate(call.inputs):
        other = onnx.ModelProto.FromString(proto.SerializeToString())
        kind = other.graph.input[i].type.tensor_type
        kind.elem_type = onnx.TensorProto.DOUBLE if kind.elem_type == 1 else onnx.TensorProto.FLOAT
        without = onnx.ModelProto.FromString(proto.SerializeToString())
        without.graph.node[0].input[i] = ""
        short = onnx.ModelProto.FromString(proto.SerializeToString())
        del short.graph.node[0].input[i:]
        for changed in (other, without, short):
            with pytest.raises(Exception, match=f"{op}|[Tt]ype"):
                open_session(changed.SerializeToString(), best_library)
                print("took", op, name)


@pytest.mark.parametrize("op", OPS)
def test_outputs_that_are_left_out(best_library, op):
    call = case(op)
    proto = onnx.load_from_string(model(call, function=False))
    needed = len(call.outputs) - 1
    for names in ([], ["", "survivors"], [*[""] * needed, "survivors"], [*call.outputs, "more"]):
        changed = onnx.ModelProto.FromString(proto.SerializeToString())
        del changed.graph.node[0].output[:]
        changed.graph.node[0].output.extend(names)
        kept = [o for o in changed.graph.output if o.name in names]
        del changed.graph.output[:]
        changed.graph.output.extend(kept or [onnx.helper.make_tensor_value_info("X", 1, None)])
        with pytest.raises(Exception, match=r".+"):
            open_session(changed.SerializeToString(), best_library).run(None, call.inputs)
            print("took", op, names)


NUMBERS = (np.nan, np.inf, -np.inf, -1.0, 0.0, -0.0, 1e-45, 3e38)


@pytest.mark.parametrize("op", OPS)
def test_wild_parameters(library, op):
    """Thresholds, scales, radii that are no numbers: any result, of the right shape, and an index that exists."""
    rng = np.random.default_rng(0)
    call = case(op)
    session = session_of(call, library)
    shapes_of = [r.shape for r in session.run(None, call.inputs)]
    for name, value in call.inputs.items():
        if name in ("X", "max") or value.dtype != np.float32:
            continue
        for number in NUMBERS:
            wild = np.where(rng.random(value.shape) < 0.5, np.float32(number), value).astype(np.float32)
            results = session.run(None, {**call.inputs, name: wild})
            assert [r.shape for r in results] == shapes_of
            if op in HEADS:
                assert 0 <= results[-2].min() and results[-2].max() < len(call.inputs["bias"])
