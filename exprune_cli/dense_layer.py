"""The dense layer of a site in standard operators: what it is timed against, and falls back to."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from exprune_cli.sites import Site


def linear_nodes(
    site: Site, x: str, weight: str, bias: str, out: str, *, rank: int | None, outputs_first: bool
) -> list[onnx.NodeProto]:
    """``out = x W + bias`` of a Gemm or MatMul site.

    Args:
        site: The site; not a Conv.
        x: Name of the input, ``[..., G]``.
        weight: Name of the weight, ``[N, G]`` if ``outputs_first``, else ``[G, N]``.
        bias: Name of the bias, ``[N]``.
        out: Name of the result; names in between start with it.
        rank: Rank of ``x``; None if unknown.
        outputs_first: Layout of the weight.
    """
    if rank == 2:
        trans = int(outputs_first)
        return [helper.make_node("Gemm", [x, weight, bias], [out], f"{out}/Gemm", transB=trans)]
    if not outputs_first:
        return [
            helper.make_node("MatMul", [x, weight], [f"{out}/product"], f"{out}/MatMul"),
            helper.make_node("Add", [f"{out}/product", bias], [out], f"{out}/Add"),
        ]
    # A MatMul would need the weight the other way round, in memory once more.
    return [
        _constant(f"{out}/flat", np.array([-1, site.groups], np.int64)),
        _constant(f"{out}/begin", np.array([0], np.int64)),
        _constant(f"{out}/end", np.array([-1], np.int64)),
        _constant(f"{out}/width", np.array([site.outputs], np.int64)),
        helper.make_node("Reshape", [x, f"{out}/flat"], [f"{out}/rows"], f"{out}/Reshape"),
        helper.make_node("Gemm", [f"{out}/rows", weight, bias], [f"{out}/product"], f"{out}/Gemm", transB=1),
        helper.make_node("Shape", [x], [f"{out}/shape"], f"{out}/Shape"),
        helper.make_node(
            "Slice", [f"{out}/shape", f"{out}/begin", f"{out}/end"], [f"{out}/lead"], f"{out}/Slice"
        ),
        helper.make_node("Concat", [f"{out}/lead", f"{out}/width"], [f"{out}/full"], f"{out}/Concat", axis=0),
        helper.make_node("Reshape", [f"{out}/product", f"{out}/full"], [out], f"{out}/Unflatten"),
    ]


def end_nodes(site: Site, linear: str, outputs: list[str]) -> list[onnx.NodeProto]:
    """What makes a site's results of its linear op: the ReLU, the ArgMax, the TopK, or nothing."""
    name = outputs[-1]
    if site.kind == "sparse":
        return [helper.make_node("Identity", [linear], outputs, f"{name}/Identity")]
    if site.kind == "top_k":
        return [
            _constant(f"{name}/k", np.array([site.k], np.int64)),
            helper.make_node("TopK", [linear, f"{name}/k"], outputs, f"{name}/TopK", axis=-1),
        ]
    if site.kind == "argmax":
        attributes: dict[str, Any] = {"axis": -1, "keepdims": int(site.keepdims)}
        if site.select_last_index:
            attributes["select_last_index"] = 1
        return [helper.make_node("ArgMax", [linear], outputs, f"{name}/ArgMax", **attributes)]
    if np.isinf(site.max):
        return [helper.make_node("Relu", [linear], outputs, f"{name}/Relu")]
    return [
        _constant(f"{name}/zero", np.float32(0)),
        _constant(f"{name}/max", np.float32(site.max)),
        helper.make_node("Clip", [linear, f"{name}/zero", f"{name}/max"], outputs, f"{name}/Clip"),
    ]


def result_types(site: Site) -> list[int]:
    """Element types of a site's results, in the order of :func:`end_nodes`' outputs."""
    if site.kind == "top_k":
        return [onnx.TensorProto.FLOAT, onnx.TensorProto.INT64]
    return [onnx.TensorProto.INT64 if site.kind == "argmax" else onnx.TensorProto.FLOAT]


def _constant(name: str, value: np.ndarray) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], f"{name}/Constant", value=numpy_helper.from_array(value))
