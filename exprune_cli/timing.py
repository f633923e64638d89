"""Is a staged site faster than its dense layer, here and on these inputs? Timed in turn.

A site is timed alone: its dense layer as ONNX Runtime would fuse it, against its staged node, on
what the original model computes for the given inputs. Whole-model effects (layouts, threads) are
the caller's to check on the whole model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from exprune_cli.instrument import with_outputs
from exprune_cli.measure import latency
from exprune_cli.model import Model, load, model_inputs
from exprune_cli.rewrite import rewrite
from exprune_cli.sessions import Feeds, open_session, run
from exprune_cli.shapes import infer_shapes
from exprune_cli.sites import Site, SitePlan

#: A site is staged only if it wins by more than this: the noise of a paired median.
MARGIN = 1.03
_SECONDS = 1.0
#: Without a measurement: the share of FLOPs that must be saved before a site is expected to be
#: faster. Skipping single outputs costs a Conv and a batched Gemm more than it saves below this.
EXPECTED_SHARE = 0.65


@dataclass(frozen=True)
class SiteTiming:
    """Median times of one site per run, in microseconds, and the median paired ratio."""

    dense_us: float
    staged_us: float
    speedup: float


def time_site(model: Model, site: Site, plan: SitePlan, feeds: Sequence[Feeds], threads: int = 1) -> SiteTiming:
    """Times one site, dense against staged.

    Args:
        model: The original model.
        site: One of its sites.
        plan: How it would be staged.
        feeds: Inputs of the whole model, one run each.
        threads: Threads inside an operator.
    """
    inputs = _site_inputs(model, site, feeds)
    dense = load(_cut_out(model, site) if site.separate_pad else site_model(model, site))
    alone = dataclasses.replace(
        site,
        name="site",
        input="in_0",
        offset="in_1" if site.offset else None,
        output="out",
        nodes=_site_nodes(site, dense.proto),
    )
    staged, _ = rewrite(dense, [alone], {"site": dataclasses.replace(plan, site="site")})
    times = latency(dense.proto, staged, inputs, threads, rounds=3, min_runs=30, max_seconds=_SECONDS)
    assert times.dense_ms is not None and times.speedup is not None
    return SiteTiming(times.dense_ms * 1e3, times.ms * 1e3, times.speedup)


def _site_nodes(site: Site, dense: onnx.ModelProto) -> tuple[str, ...]:
    """First outputs of the nodes of a site's own model that its staged node replaces."""
    if site.separate_pad:
        return tuple("out" if name == site.output else name for name in site.nodes)
    return tuple(node.output[0] for node in dense.graph.node)


def _site_inputs(model: Model, site: Site, feeds: Sequence[Feeds]) -> list[Feeds]:
    """What the site reads for each run of the model."""
    fed = {value.name for value in model_inputs(model.proto)}
    names = [site.input, *([site.offset] if site.offset else [])]
    inside = [name for name in names if name not in fed]
    session = open_session(model.proto, addition=with_outputs(model.proto, inside, TensorProto.FLOAT)) if inside else None
    result: list[Feeds] = []
    for feed in feeds:
        values = dict(zip(inside, run(session, feed, "timing", inside), strict=True)) if session else {}
        values |= {name: feed[name] for name in names if name in fed}
        result.append({f"in_{i}": values[name] for i, name in enumerate(names)})
    return result


def site_model(model: Model, site: Site) -> onnx.ModelProto:
    """A model of the dense layer alone, everything folded; inputs ``in_0`` and, for an offset, ``in_1``."""
    weight, nodes = site.load_weight(), []
    initializers = [numpy_helper.from_array(site.bias.astype(np.float32), "bias")]
    if site.conv:
        shape = (site.outputs, site.groups, *site.conv.kernel)
        attributes = {k: list(getattr(site.conv, k)) for k in ("strides", "dilations", "pads")}
        initializers.append(numpy_helper.from_array(weight.reshape(shape), "W"))
        nodes.append(helper.make_node("Conv", ["in_0", "W", "bias"], ["linear"], name="site", **attributes))
        rank = 2 + len(site.conv.kernel)
    else:
        rank = _rank(model, site)
        initializers.append(numpy_helper.from_array(np.ascontiguousarray(weight[:, :, 0].T), "W"))
        if rank == 2:
            trans = int(site.transposed_input)
            nodes.append(helper.make_node("Gemm", ["in_0", "W", "bias"], ["linear"], name="site", transA=trans))
        else:
            nodes.append(helper.make_node("MatMul", ["in_0", "W"], ["product"], name="site"))
            nodes.append(helper.make_node("Add", ["product", "bias"], ["linear"]))
    symbols = [f"d{i}" for i in range(rank)]
    inputs = [helper.make_tensor_value_info("in_0", TensorProto.FLOAT, symbols)]
    last = "linear"
    if site.offset:
        inputs.append(helper.make_tensor_value_info("in_1", TensorProto.FLOAT, [f"o{i}" for i in range(rank)]))
        nodes.append(helper.make_node("Add", ["linear", "in_1"], ["sum"]))
        last = "sum"
    nodes += _end(site, last, initializers)
    kind = TensorProto.INT64 if site.kind == "argmax" else TensorProto.FLOAT
    out_rank = rank - 1 if site.kind == "argmax" and not site.keepdims else rank
    output = helper.make_tensor_value_info("out", kind, [f"r{i}" for i in range(out_rank)])
    graph = helper.make_graph(nodes, "site", inputs, [output], initializers)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", model.opset)], ir_version=max(8, model.proto.ir_version)
    )


def _cut_out(model: Model, site: Site) -> onnx.ModelProto:
    """The site's nodes as the user's model has them, and what computes their constants.

    Whether ONNX Runtime fuses a Pad into its Conv, which can make it faster or slower, depends on how
    the pads are written: only the model's own form times as the model does.
    """
    source = model.proto.graph
    renamed = {site.input: "in_0", site.output: "out"} | ({site.offset: "in_1"} if site.offset else {})
    makers = {name: node for node in source.node for name in node.output if name}
    wanted, kept, constants = [site.output], [], set()
    while wanted:
        name = wanted.pop()
        if name not in makers or name in (site.input, site.offset):
            constants.add(name)
        elif not any(makers[name] is node for node in kept):
            kept.append(makers[name])
            wanted += [each for each in makers[name].input if each]
    nodes = []
    for node in source.node:
        if any(node is each for each in kept):
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.input[:] = [renamed.get(name, name) for name in node.input]
            copy.output[:] = [renamed.get(name, name) for name in node.output]
            nodes.append(copy)
    rank = 2 + len(site.conv.kernel) if site.conv else _rank(model, site)
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [f"{name}_{axis}" for axis in range(rank)])
        for name in ("in_0", *(["in_1"] if site.offset else []))
    ]
    output = helper.make_tensor_value_info("out", TensorProto.FLOAT, [f"r{axis}" for axis in range(rank)])
    initializers = [tensor for tensor in source.initializer if tensor.name in constants]
    graph = helper.make_graph(nodes, "site", inputs, [output], initializers)
    proto = helper.make_model(graph, ir_version=max(8, model.proto.ir_version))
    del proto.opset_import[:]
    proto.opset_import.extend(model.proto.opset_import)
    return proto


def _rank(model: Model, site: Site) -> int:
    shape = infer_shapes(model.proto).get(site.input)
    return 2 if shape is None else max(2, len(shape))


def _end(site: Site, last: str, initializers: list[onnx.TensorProto]) -> list[onnx.NodeProto]:
    if site.kind == "sparse":
        return [helper.make_node("Identity", [last], ["out"])]
    if site.kind == "argmax":
        attributes: dict[str, int] = {"axis": -1, "keepdims": int(site.keepdims)}
        if site.select_last_index:
            attributes["select_last_index"] = 1
        return [helper.make_node("ArgMax", [last], ["out"], **attributes)]
    if np.isinf(site.max):
        return [helper.make_node("Relu", [last], ["out"])]
    initializers.append(numpy_helper.from_array(np.float32(0), "zero"))
    initializers.append(numpy_helper.from_array(np.float32(site.max), "max"))
    return [helper.make_node("Clip", [last, "zero", "max"], ["out"])]


def random_feeds(model: Model, batch: int, seed: int, count: int = 4) -> list[Feeds] | None:
    """Seeded inputs for timing where no data is given; None if the inputs are not plain tensors.

    Floats are standard normal, integers 0, unknown sizes 16 (the first one ``batch``).
    """
    rng = np.random.default_rng(seed)
    feeds = []
    for _ in range(count):
        feed = {}
        for value in model_inputs(model.proto):
            tensor = value.type.tensor_type
            if not value.type.HasField("tensor_type") or not tensor.HasField("shape"):
                return None
            shape = [d.dim_value or (batch if i == 0 else 16) for i, d in enumerate(tensor.shape.dim)]
            dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
            if dtype.kind not in "fiub":
                return None
            feed[value.name] = (rng.standard_normal(shape) if dtype.kind == "f" else np.zeros(shape)).astype(dtype)
        feeds.append(feed)
    return feeds
