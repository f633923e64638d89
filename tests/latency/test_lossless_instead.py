"""Where no bolder plan keeps the drop: what is lossless keeps any drop, and can still save time."""

from __future__ import annotations

import logging

import numpy as np
import pytest

import exprune_cli
from exprune_cli.errors import GateError
from tests.models import build

FFN = """g (float[N, 256] x) => (float[N, 256] y) {
  a = MatMul (x, w)
  b = Add (a, shift)
  c = Relu (b)
  y = MatMul (c, v)
}"""


@pytest.fixture
def model():
    return build(FFN, {"w": (256, 4096), "shift": np.full(4096, -2.0, np.float32), "v": (4096, 256)})


@pytest.fixture
def data():
    return {"x": np.random.default_rng(3).standard_normal((256, 256)).astype(np.float32)}


def test_lossless_staging_keeps_any_drop(model, data, caplog):
    with caplog.at_level(logging.WARNING):
        found = exprune_cli.optimize(model, data=data, metric="cosine", max_drop=1e-7, measure=False)
    staged = [site for site in found.record.sites if site.staged]
    assert staged and {site.test for site in staged} <= {"bound", "zero"}
    assert found.record.test == "bound"
    assert "staged losslessly instead" in caplog.text


@pytest.mark.parametrize(
    "options", [{"objective": "flops"}, {"confidence": 0.95}], ids=["for FLOPs", "certified"]
)
def test_flops_and_certificates_have_no_such_way_out(model, data, options):
    asked = {"metric": "agreement" if "confidence" in options else "cosine", **options}
    with pytest.raises(GateError):
        exprune_cli.optimize(model, data=data, max_drop=1e-7, measure=False, **asked)
