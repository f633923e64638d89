"""Notes for model viewers: on nodes where the IR version has a place for them, in doc strings elsewhere."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import exprune_cli
from exprune_cli.labels import label
from exprune_cli.match import match
from exprune_cli.model import Model
from exprune_cli.planning.quantized import plan_quantized
from exprune_cli.record import Record, read_record
from exprune_cli.rewrite import own, rewrite
from tests.models import build, cnn, mlp


def notes(entries: object) -> dict[str, str]:
    return {entry.key: entry.value for entry in entries}  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((160, 64)).astype(np.float32)


def newer() -> onnx.ModelProto:
    model = mlp()
    model.ir_version = 10
    model.metadata_props.add(key="author", value="someone")
    return model


def test_nodes_carry_notes_from_ir_version_10_on(images: np.ndarray) -> None:
    done = exprune_cli.optimize(newer(), data=images, objective="flops", max_drop=0.2)
    found = {node.name: notes(node.metadata_props) for node in done.model.graph.node if node.domain}
    for site in done.report.staged:
        assert site.flops is not None and site.flops_dense
        (mine,) = (note for note in found.values() if note["exprune.site"] == site.name)
        expected = {
            "exprune.site": site.name,
            "exprune.rule": site.rule,
            "exprune.estimate": site.estimate,
            "exprune.test": site.test,
            "exprune.saved": f"{1 - site.flops / site.flops_dense:.1%} of its FLOPs, expected",
        }
        assert mine == {key: value for key, value in expected.items() if value is not None}
    assert len(found) == done.staged > 0
    assert not any(node.doc_string for node in done.model.graph.node)
    onnx.checker.check_model(done.model, full_check=True)
    done.session(use_runtime=False).run(None, {"x": images[:2]})


def test_older_models_say_it_in_doc_strings() -> None:
    done = exprune_cli.optimize(mlp(), objective="flops")
    staged = [node for node in done.model.graph.node if node.domain]
    assert [node.doc_string for node in staged] == [
        "exprune site: a; rule: relu-gemm; estimate: prefix; test: bound",
        "exprune site: m; rule: relu-gemm; estimate: prefix; test: bound",
        "exprune site: f; rule: argmax-gemm; estimate: prefix; test: bound",
    ]
    assert not any(len(node.metadata_props) for node in done.model.graph.node)


def test_the_model_carries_notes_beside_its_own(images: np.ndarray) -> None:
    done = exprune_cli.optimize(newer(), data=images, objective="flops", max_drop=0.3, confidence=0.9)
    found, fidelity, certificate = notes(done.model.metadata_props), done.report.fidelity, done.certificate
    assert fidelity is not None and certificate is not None
    record = found.pop("exprune")
    assert record.startswith("{")
    assert found == {
        "author": "someone",
        "exprune.version": exprune_cli.__version__,
        "exprune.objective": "flops",
        "exprune.staged": f"{done.staged} of 3 linear operators, test calibrated",
        "exprune.quality": f"agreement drops by {fidelity.drop:.4g} on {fidelity.samples} samples",
        "exprune.certificate": f"agreement drops by at most 0.3 at 0.9 confidence, from {certificate.samples} samples",
    }


def test_notes_are_replaced_not_repeated() -> None:
    done = exprune_cli.optimize(newer(), objective="flops")
    record = read_record(done.model)
    assert record is not None
    before = done.model.SerializeToString(deterministic=True)
    label(done.model, record)
    assert done.model.SerializeToString(deterministic=True) == before


def test_a_guarded_node_is_found_in_its_branch() -> None:
    model = Model(newer(), None, "")
    sites = match(model).sites
    plans = {site.name: plan_quantized(site) for site in sites}
    for plan in plans.values():
        assert plan is not None
        plan.most_rows = 8
    proto, records = rewrite(model, sites, plans)  # type: ignore[arg-type]  # no plan is None
    label(own(proto, model), Record("exprune 0.1.0", "", "latency", "bound", records))
    inner = [
        notes(node.metadata_props)
        for guard in proto.graph.node
        if guard.op_type == "If"
        for attribute in guard.attribute
        for node in attribute.g.node
        if node.domain
    ]
    assert [note["exprune.site"] for note in inner] == [site.name for site in sites]
    assert {note["exprune.rows"] for note in inner} == {"staged up to 8, dense above"}


def test_an_untouched_output_is_not_labelled() -> None:
    plain = build("g (float[N, 4] x) => (float[N, 3] y) { y = MatMul (x, w) }", {"w": (4, 3)})
    assert not exprune_cli.optimize(plain).model.metadata_props


def test_convolutions_too() -> None:
    model = cnn()
    model.ir_version = 10
    done = exprune_cli.optimize(model, objective="flops")
    rules = {notes(node.metadata_props)["exprune.rule"] for node in done.model.graph.node if node.domain}
    assert rules == {"relu-conv"}
