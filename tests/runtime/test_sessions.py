"""Threads, concurrent runs, outputs that are not asked for, shape inference, registering."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from .cases import KINDS, model, random_site, run, session
from .test_door import CONV, conv_inputs, gemm_inputs


def case(family, kind, seed=0):
    """Op, inputs and attributes of a site that is large enough for several tasks."""
    rng = np.random.default_rng(seed)
    taps = 9 if family == "Conv" else 1
    site = random_site(rng, family, kind, 700 if family == "ArgMax" else 150, 96, taps, 4)
    kernel = (3, 3) if family == "Conv" else ()
    inputs = {
        k: v.reshape(*v.shape[:2], *kernel) if k.startswith("W_") else v for k, v in site.inputs.items()
    }
    shape = (2, 96, 13, 13) if family == "Conv" else (37, 96)
    inputs["X"] = rng.standard_normal(shape).astype(np.float32)
    if family != "ArgMax":
        inputs["offset"], inputs["max"] = np.zeros(1, np.float32), np.array([np.inf], np.float32)
    attributes = {"z": site.z} if kind == "Stats" else {}
    if family == "Conv":
        attributes |= {"strides": [1, 1], "dilations": [1, 1], "pads": [1, 1, 1, 1]}
    return f"Prefix{family}{kind}", {**inputs, **site.parameters}, attributes


@pytest.mark.parametrize("family", ["Gemm", "Conv", "ArgMax"])
@pytest.mark.parametrize("kind", KINDS)
def test_results_do_not_depend_on_threads(library, family, kind):
    op, inputs, attributes = case(family, kind)
    if library.endswith("scalar.so") and family == "Conv":
        inputs["X"] = inputs["X"][:1, :, :4, :4]
    one = run(library, op, inputs, threads=1, **attributes)
    two = run(library, op, inputs, threads=2, **attributes)
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_row_does_not_depend_on_its_company(best_library):
    """Few rows, as dot products: the same row gives the same bits alone and in a batch."""
    op, inputs, _ = case("Gemm", "Threshold")
    inputs["X"] = inputs["X"][:3]
    together, _ = run(best_library, op, inputs)
    alone = [run(best_library, op, {**inputs, "X": inputs["X"][r : r + 1]})[0] for r in range(3)]
    np.testing.assert_array_equal(together, np.concatenate(alone))


@pytest.mark.parametrize("rows", [1, 3, 70])
def test_sparse_sums_depend_on_row_and_column_alone(library, rows):
    """Neither threads nor the other rows change a bit of a row's result."""
    rng = np.random.default_rng(0)
    x = np.maximum(rng.standard_normal((rows, 1200)) - 1, 0).astype(np.float32)
    w = rng.standard_normal((1200, 300)).astype(np.float32)
    inputs = {"X": x, "W": w, "bias": np.ones(300, np.float32)}
    one, two = (run(library, "SparseGemm", inputs, threads) for threads in (1, 2))
    assert one[1].tolist() == two[1].tolist() == [np.count_nonzero(x)]
    np.testing.assert_array_equal(one[0], two[0])
    alone = [run(library, "SparseGemm", {**inputs, "X": x[r : r + 1]})[0] for r in range(rows)]
    np.testing.assert_array_equal(one[0], np.concatenate(alone))


@pytest.mark.parametrize("family", ["Gemm", "Conv", "ArgMax"])
def test_concurrent_runs_of_one_session(best_library, family):
    """Different sizes at the same time: every run has working memory of its own."""
    op, inputs, attributes = case(family, "Threshold")
    shared = session(best_library, model(op, attributes), threads=2)
    feeds = []
    for n in range(12):
        x = inputs["X"]
        feeds.append({**inputs, "X": x[..., : 5 + n % 4] if family == "Conv" else x[: 1 + 3 * n]})
    run_once = lambda feed: shared.run(None, feed)
    expected = [run_once(feed) for feed in feeds]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for want, got in zip(expected, pool.map(run_once, feeds), strict=True):
                for a, b in zip(want, got, strict=True):
                    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("family", ["Gemm", "Conv", "ArgMax"])
def test_survivors_need_not_be_asked_for(library, family):
    op, inputs, attributes = case(family, "Threshold")
    if family == "Conv":
        inputs["X"] = inputs["X"][:1, :, :4, :4]
    both = run(library, op, inputs, **attributes)
    (only,) = run(library, op, inputs, outputs=1, **attributes)
    np.testing.assert_array_equal(both[0], only)
    x = np.array([[0, 2, 0]], np.float32)
    w, bias = np.ones((3, 2), np.float32), np.zeros(2, np.float32)
    assert run(library, "SparseGemm", {"X": x, "W": w, "bias": bias}, outputs=1)[0].tolist() == [[2, 2]]


def inferred(library, data):
    """Shape of Y as ONNX Runtime infers it."""
    return list(session(library, data).get_outputs()[0].shape)


def weights(inputs):
    return {k: v for k, v in inputs.items() if k != "X"}


def test_inferred_shapes(best_library):
    gemm = weights(gemm_inputs())
    data = model("PrefixGemmThreshold", shapes={"X": ["batch", 4, 8]}, constants=gemm)
    assert inferred(best_library, data) == ["batch", 4, 5]
    conv = weights(conv_inputs())
    strided = {**CONV, "strides": [2, 1]}
    data = model("PrefixConvThreshold", strided, shapes={"X": ["batch", 8, 9, "width"]}, constants=conv)
    shape = inferred(best_library, data)
    assert shape[:3] == ["batch", 5, 4] and len(shape) == 4
    assert shape[3] not in ("width", "batch") and isinstance(shape[3], str) and shape[3]
    head = {k: v for k, v in gemm.items() if k not in ("offset", "max", "limit")}
    head |= {"shift": np.zeros((2, 5), np.float32), "margin": np.zeros((2, 5), np.float32)}
    for keep, want in ((1, ["batch", 4, 1]), (0, ["batch", 4])):
        data = model(
            "PrefixArgMaxThreshold", {"keepdims": keep}, shapes={"X": ["batch", 4, 8]}, constants=head
        )
        assert inferred(best_library, data) == want
    sparse = {"W": np.zeros((8, 3), np.float32), "bias": np.zeros(3, np.float32)}
    data = model("SparseGemm", shapes={"X": ["batch", 8]}, constants=sparse)
    assert inferred(best_library, data) == ["batch", 3]


def test_an_unknown_input_still_gives_a_conv_its_rank(best_library):
    data = model("PrefixConvThreshold", CONV, constants=weights(conv_inputs()))
    shape = inferred(best_library, data)
    assert len(shape) == 4 and shape[1] == 5
    unnamed = [shape[0], *shape[2:]]
    assert len(set(unnamed)) == 3, "unknown dims must not look equal"


def test_inside_a_subgraph(best_library):
    """Weights of the outer graph, the node in a branch of If."""
    inner = onnx.load_from_string(model("PrefixGemmThreshold", constants=weights(gemm_inputs())))
    node = inner.graph.node[0]
    branch = onnx.helper.make_graph(
        [node], "then", [], [onnx.helper.make_tensor_value_info("Y", 1, None)], []
    )
    other = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["X"], ["Z"])],
        "else",
        [],
        [onnx.helper.make_tensor_value_info("Z", 1, None)],
    )
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("If", ["which"], ["out"], then_branch=branch, else_branch=other)],
        "g",
        [
            onnx.helper.make_tensor_value_info("X", 1, ["batch", 8]),
            onnx.helper.make_tensor_value_info("which", 9, []),
        ],
        [onnx.helper.make_tensor_value_info("out", 1, None)],
        list(inner.graph.initializer),
    )
    data = onnx.helper.make_model(graph, opset_imports=inner.opset_import, ir_version=8)
    shared = session(best_library, data.SerializeToString())
    x = gemm_inputs()["X"]
    (y,) = shared.run(None, {"X": x, "which": np.array(True)})
    np.testing.assert_array_equal(y, run(best_library, "PrefixGemmThreshold", gemm_inputs())[0])
    assert shared.run(None, {"X": x, "which": np.array(False)})[0].shape == (3, 8)


def test_many_sessions_share_the_ops(best_library):
    data = model("PrefixGemmThreshold")
    with ThreadPoolExecutor(4) as pool:
        sessions = list(pool.map(lambda _: session(best_library, data), range(16)))
    for one in sessions:
        assert one.run(None, gemm_inputs())[0].shape == (3, 5)


def test_python_session():
    from exprune_cli.runtime import runtime_available, runtime_info, runtime_library
    from exprune_cli.runtime import session as open_session

    if not runtime_available():
        pytest.skip("the native runtime is not built")
    assert runtime_library().is_file() and runtime_info().startswith("exprune 0.1.0 isa=")
    options = ort.SessionOptions()
    data = model("PrefixGemmThreshold")
    for _ in range(2):  # registering twice on the same options would fail
        assert open_session(data, options).get_providers() == ["CPUExecutionProvider"]
    with pytest.raises(Exception, match="PrefixGemmThreshold"):
        open_session(data, use_runtime=False)


@pytest.mark.parametrize(("wanted", "fine"), [("portable", {"portable"}), ("scalar", {"scalar"})])
def test_the_environment_chooses_the_kernels(wanted, fine):
    from exprune_cli.runtime import runtime_available

    if not runtime_available():
        pytest.skip("the native runtime is not built")
    code = "from exprune_cli.runtime import runtime_info; print(runtime_info().split('isa=')[1])"
    import os

    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "EXPRUNE_ISA": wanted},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() in fine
