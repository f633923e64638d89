"""The sample models with statistics from a part of their data."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import onnx

from exprune_cli.data import DataSet, open_data
from exprune_cli.match import match
from exprune_cli.model import Model, load
from exprune_cli.observe import observe
from exprune_cli.planning.planner import plan
from exprune_cli.record import Record, SiteRecord, write_record
from exprune_cli.rewrite import own, rewrite
from exprune_cli.sites import Calibration

ROOT = Path(__file__).parents[1] / "sample_models"

#: Model, calibration data, test data, and how many samples tests take of each.
CASES = {
    "digits_resnet": (
        "digits_resnet/digits_resnet.onnx",
        "digits_resnet/calibration",
        "digits_resnet/test",
        96,
        150,
    ),
    "graph_gcn": ("graph_gcn/graph_gcn.onnx", "graph_gcn/calibration", "graph_gcn/test", 6, 8),
    "relu_lm": ("relu_lm/relu_lm.onnx", "relu_lm/calibration", "relu_lm/test", 24, 24),
    "relu_lm_step": ("relu_lm/relu_lm_step.onnx", "relu_lm/calibration_step", "relu_lm/test_step", 14, 14),
}


@dataclass
class Sample:
    """A sample model with statistics from a part of its calibration data."""

    name: str
    model: Model
    calibration: Calibration
    test_folder: Path
    test: DataSet

    def stage(self, test: str, budget: float = 0.003) -> tuple[onnx.ModelProto, list[SiteRecord]]:
        """The model with all its sites staged under one test."""
        sites = match(self.model).sites
        proto, records = rewrite(self.model, sites, plan(sites, self.calibration, test, [budget])[0])
        proto = own(proto, self.model)
        write_record(proto, Record("exprune", self.model.sha256, "flops", test, records))
        onnx.checker.check_model(proto, full_check=True)
        return proto, records


@functools.cache
def load_sample(name: str) -> Sample:
    path, calibration, test, few, some = CASES[name]
    model = load(ROOT / path)
    data = open_data(ROOT / calibration, model.proto)
    statistics = observe(model, match(model).sites, data.take(min(few, len(data)), 0), seed=0)
    held_out = open_data(ROOT / test, model.proto)
    return Sample(name, model, statistics, ROOT / test, held_out.take(min(some, len(held_out)), 0))
