"""Convs planned in blocks or panels: a site, statistics, a whole model, and what plans must do on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from exprune_cli.data import DataSet, open_data
from exprune_cli.flops import dense_site_flops, spent_flops
from exprune_cli.match import match
from exprune_cli.model import Model, load
from exprune_cli.observe_blocks import BlockStatistics
from exprune_cli.rewrite import rewrite
from exprune_cli.runtime import runtime_available, session
from exprune_cli.sites import ConvGeometry, Site, SitePlan
from tests.models import build

Case = tuple[Model, DataSet, np.ndarray]


def conv_site(outputs: int = 6, groups: int = 16) -> Site:
    """A 3x3 Conv with random weights."""
    weight = np.random.default_rng(0).standard_normal((outputs, groups, 9)).astype(np.float32)
    return Site(
        name="s",
        op="Conv",
        rule="relu-conv",
        kind="relu",
        input="x",
        output="y",
        outputs=outputs,
        groups=groups,
        bias=np.linspace(-0.5, 0.5, outputs).astype(np.float32),
        load_weight=lambda: weight,
        conv=ConvGeometry((3, 3), (1, 1), (1, 1), (1, 1, 1, 1)),
    )


def smooth_statistics(
    site: Site, ends: Sequence[int], positions: int = 100, seed: int = 0
) -> BlockStatistics:
    """Smooth maps whose partial sums tell more and more of the final ones."""
    rng = np.random.default_rng(seed)
    smooth = np.cumsum(rng.standard_normal((20, site.outputs, positions)), axis=2) / 4 - 1
    final = smooth.astype(np.float32)
    partial = [
        (final * e / site.groups + (1 - e / site.groups) * rng.standard_normal(final.shape)).astype(
            np.float32
        )
        for e in ends
    ]
    return BlockStatistics(partial, final, site.bias[None, :, None])


def smooth_case(folder: Path, size: int, outputs: int, stride: int) -> Case:
    """A model of two Convs, one with a residual and one with this stride, and smooth images of ``size`` x ``size``."""
    out = -(-size // stride)
    model = build(
        f"""g (float[N, 4, {size}, {size}] x) => (float[N, {outputs}, {out}, {out}] y) {{
          a = Conv <pads: ints = [1, 1, 1, 1], strides: ints = [{stride}, {stride}]> (x, w1, b1)
          r = Relu (a)
          b = Conv <pads: ints = [1, 1, 1, 1]> (r, w2, b2)
          c = Add (b, r)
          y = Relu (c)
        }}""",
        {
            "w1": (outputs, 4, 3, 3),
            "b1": (outputs,),
            "w2": (outputs, outputs, 3, 3),
            "b2": (outputs,),
        },
    )
    noise = np.random.default_rng(3).standard_normal((60, 4, size, size))
    images = np.cumsum(np.cumsum(noise, axis=2), axis=3).astype(np.float32) / 8
    np.savez(folder / "images.npz", x=images)
    loaded = load(model)
    return loaded, open_data(folder, loaded.proto), images


def check_plans_on_the_model(case: Case, plans: Mapping[str, SitePlan]) -> None:
    """The kernel decides what the function does and what was planned, and is counted by what it leaves."""
    if not runtime_available():
        pytest.skip("the runtime is not built")
    model, _, images = case
    proto, records = rewrite(model, match(model).sites, plans)
    onnx.checker.check_model(proto, full_check=True)
    staged = [record for record in records if plans[record.name].block]
    proto.graph.output.extend(
        onnx.helper.make_tensor_value_info(record.survivors, onnx.TensorProto.INT64, None)
        for record in staged
    )
    native = session(proto.SerializeToString())
    plain = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    got, want = native.run(None, {"x": images}), plain.run(None, {"x": images})
    assert (np.abs(got[0] - want[0]) > 1e-4).mean() < 0.01
    rows = len(images) * got[0].shape[2] * got[0].shape[3]
    for record, one, other in zip(staged, got[1:], want[1:], strict=True):
        assert abs(int(one[0]) - int(other[0])) <= 0.01 * rows * record.outputs
        share = 1 - one[0] / (rows * record.outputs)
        assert abs(share - record.pruned[0]) < 0.05
        end, full = record.ends[0], dense_site_flops(record, rows)
        spent = full * (end + (1 - share) * (record.groups - end)) / record.groups
        tested = 6 * rows * record.outputs
        if plans[record.name].dynamic:  # a square and a sum for each input; strides are 1
            tested += 2 * rows * record.groups
        assert spent_flops(record, rows, [float(one[0])]) == pytest.approx(spent + tested)


def check_exact_on_the_model(case: Case, plans: Mapping[str, SitePlan], op_type: str) -> onnx.ModelProto:
    """Sites that are only computed in another way give and cost what the dense layers do."""
    model, _, images = case
    proto, records = rewrite(model, match(model).sites, plans)
    assert [node.op_type for node in proto.graph.node] == [op_type, op_type]
    for record in records:
        assert spent_flops(record, 7, [0.0]) == dense_site_flops(record, 7)
    staged, dense = (
        ort.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"])
        for m in (proto, model.proto)
    )
    feeds = {"x": images}
    np.testing.assert_allclose(staged.run(None, feeds)[0], dense.run(None, feeds)[0], atol=1e-4)
    return proto
