"""A pass for Olive (``pip install 'exprune[olive]'``) that stages an ONNX model.

In a workflow, after whatever makes the model an ONNX model and before quantisation of the rest::

    "passes": {"exprune": {"type": "ExpruneStaging", "objective": "flops", "data": "samples", "max_drop": 0.01}}

Olive finds passes by a package configuration. This prints Olive's own with the pass in it::

    python -m exprune_cli.integrations.olive > packages.json
    olive run --config workflow.json --package-config packages.json

Olive's evaluators do not register the native runtime: they run staged operators as ONNX functions, with
the same results and without the speed. Measure latency with ``exprune report``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from olive.common.config_utils import ParamCategory, validate_config
from olive.data.config import DataConfig
from olive.hardware.accelerator import AcceleratorSpec
from olive.model import ONNXModelHandler
from olive.model.utils import resolve_onnx_path
from olive.package_config import OlivePackageConfig
from olive.passes import Pass
from olive.passes.pass_config import BasePassConfig, PassConfigParam

from exprune_cli import optimize

_NAME = "ExpruneStaging"


class ExpruneStaging(Pass):  # type: ignore[misc]  # Olive has no type information
    """Stages an ONNX model: ``exprune optimize`` with its options as parameters."""

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:
        def parameter(type_: object, default: object, description: str, **more: object) -> PassConfigParam:
            return PassConfigParam(type_=type_, default_value=default, description=description, **more)

        return {
            "data": parameter(
                str | Path,
                None,
                "Folder of samples as exprune reads it; their 'label' is used.",
                category=ParamCategory.DATA,
            ),
            "data_config": parameter(
                DataConfig | dict,
                None,
                "Olive's samples, in place of 'data'; their labels are used if 'use_labels' is set.",
            ),
            "use_labels": parameter(bool, False, "Take the labels of 'data_config'."),
            "calibration": parameter(
                str | Path, None, "File of exprune calibrate.", category=ParamCategory.PATH
            ),
            "test": parameter(str, "auto", "auto, bound, stats, threshold or calibrated."),
            "objective": parameter(str, "latency", "latency (of this machine's CPU) or flops."),
            "max_drop": parameter(float, None, "Greatest drop of the metric; needs samples."),
            "confidence": parameter(float, None, "Certify 'max_drop' at this confidence."),
            "metric": parameter(
                str | Callable, None, "Name of a metric, FILE.py:FUNC, or a function of exprune's form."
            ),
            "exclude": parameter(list[str], [], "Patterns of sites to leave dense."),
            "top_k": parameter(list[str], [], "OUTPUT=K: return the K best of an output."),
            "batch": parameter(int, None, "Batch size that the model is meant for."),
            "measure": parameter(bool, True, "Whether timings on this machine may decide."),
            "fuse": parameter(bool, True, "Whether operators around the sites may be fused."),
            "seed": parameter(int, 0, "Seed of what is drawn."),
        }

    def _run_for_config(
        self, model: ONNXModelHandler, config: BasePassConfig, output_model_path: str
    ) -> ONNXModelHandler:
        if not isinstance(model, ONNXModelHandler):
            raise NotImplementedError(f"{_NAME} stages ONNX models: convert the model first")
        options: dict[str, Any] = config.model_dump()
        loader, labelled = options.pop("data_config"), options.pop("use_labels")
        if loader is not None:
            if options["data"] is not None:
                raise ValueError(f"{_NAME}: give 'data' or 'data_config', not both")
            container = validate_config(loader, DataConfig).to_data_container()
            names = model.io_config["input_names"]
            options["data"] = _samples(container.create_dataloader(), names, labelled)
        known = {name for name in self.default_config(self.accelerator_spec) if name in options}
        done = optimize(model.model_path, **{name: options[name] for name in known})
        path = Path(resolve_onnx_path(output_model_path, Path(model.model_path).name))
        done.save(path)
        if path.with_name(f"{path.name}.data").exists():
            settings = model.inference_settings
            return ONNXModelHandler(path.parent, onnx_file_name=path.name, inference_settings=settings)
        return ONNXModelHandler(path, inference_settings=model.inference_settings)


def _samples(loader: Any, names: Sequence[str], labelled: bool) -> Iterator[dict[str, np.ndarray]]:
    """What Olive's data loaders yield, ``(inputs, label)``, as exprune takes it.

    Inputs come by name, in the order of ``names``, or as the only one.
    """
    for inputs, label in loader:
        if not isinstance(inputs, Mapping):
            inputs = dict(zip(names, inputs if isinstance(inputs, (list, tuple)) else [inputs], strict=True))
        sample = {name: np.asarray(value) for name, value in inputs.items()}
        yield {**sample, "label": np.asarray(label)} if labelled else sample


def package_config() -> dict[str, Any]:
    """Olive's package configuration with the pass in it, for ``olive.workflows.run``."""
    found: dict[str, Any] = json.loads(Path(OlivePackageConfig.get_default_config_path()).read_text())
    found["passes"][_NAME] = {
        "module_path": f"exprune_cli.integrations.olive.{_NAME}",
        "supported_providers": ["CPUExecutionProvider"],
        "supported_accelerators": ["cpu"],
        "supported_precisions": ["*"],
        "supported_algorithms": [],
        "supported_quantization_encodings": [],
        "dataset": "dataset_optional",
    }
    return found


if __name__ == "__main__":
    json.dump(package_config(), sys.stdout, indent=2)
