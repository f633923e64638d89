"""A Pad of zeros before a Conv becomes the Conv's own pads; any other Pad stays."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from exprune_cli.match import match
from exprune_cli.model import load
from exprune_cli.planning.blocks import exact_plan
from exprune_cli.rewrite import rewrite
from tests.models import build

WEIGHTS = {"w": (8, 4, 5, 1), "b": (8,)}
PADS = np.array([0, 0, 2, 0, 0, 0, 3, 0], np.int64)
#: As PyTorch writes them: begins and ends swapped around, padded with zeros, cast.
CHAIN = """
  zeros = ConstantOfShape <value: tensor = int64[1] {0}> (four)
  eight = Concat <axis: int = 0> (given, zeros)
  pairs = Reshape (eight, by_two)
  turned = Slice (pairs, last, lowest, first_axis, minus_one)
  sides = Transpose <perm: ints = [1, 0]> (turned)
  flat = Reshape (sides, minus_one)
  pads = Cast <to: int = 7> (flat)
"""
CHAIN_CONSTANTS = {
    "four": np.array([4], np.int64),
    "given": np.array([0, 0, 2, 3], np.int64),
    "by_two": np.array([-1, 2], np.int64),
    "last": np.array([-1], np.int64),
    "lowest": np.array([np.iinfo(np.int64).min], np.int64),
    "first_axis": np.array([0], np.int64),
    "minus_one": np.array([-1], np.int64),
}


def _model(pad="p = Pad (x, pads)", constants=None, conv="y = Conv (p, w, b)", outputs=""):
    return build(
        f"""g (float[N, 4, 12, 1] x) => (float[N, 8, h, 1] z{outputs}) {{
          {pad}
          {conv}
          z = Relu (y)
        }}""",
        {**WEIGHTS, **({"pads": PADS} if constants is None else constants)},
    )


def _run(proto, x):
    return ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(
        None, {"x": x}
    )[0]


FOLDED = {
    "constant": _model(),
    "a zero value": _model("p = Pad (x, pads, nothing)", {"pads": PADS, "nothing": np.float32(0)}),
    "a computed chain": _model(CHAIN + "p = Pad (x, pads)", CHAIN_CONSTANTS),
    "own pads too": _model(conv="y = Conv <pads: ints = [1, 0, 0, 0], strides: ints = [2, 1]> (p, w, b)"),
}


@pytest.mark.parametrize("name", FOLDED)
def test_folded(name):
    proto = FOLDED[name]
    model = load(proto)
    (site,) = match(model).sites
    own = 1 if name == "own pads too" else 0
    assert site.input == "x" and site.separate_pad and site.conv.pads == (2 + own, 0, 3, 0)
    staged, _ = rewrite(model, [site], {site.name: exact_plan(site)})
    assert [node.op_type for node in staged.graph.node] == ["ConvRelu"]
    onnx.checker.check_model(staged, full_check=True)
    x = np.random.default_rng(0).standard_normal((2, 4, 12, 1)).astype(np.float32)
    np.testing.assert_allclose(_run(staged, x), _run(proto, x), atol=1e-5)


KEPT = {
    "another value": _model("p = Pad (x, pads, one)", {"pads": PADS, "one": np.float32(1)}),
    "reflected": _model('p = Pad <mode: string = "reflect"> (x, pads)'),
    "channels": _model(
        constants={"pads": np.array([0, 0, 2, 0, 1, 0, 3, 0], np.int64)},
    ),
    "cropped": _model(constants={"pads": np.array([0, 0, -1, 0, 0, 0, 3, 0], np.int64)}),
    "read twice": _model(outputs=", float[N, 4, k, 1] p"),
}


@pytest.mark.parametrize("name", KEPT)
def test_kept(name):
    (site,) = match(load(KEPT[name])).sites
    assert site.input == "p" and not site.separate_pad and site.conv.pads == (0, 0, 0, 0)
