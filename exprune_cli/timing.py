"""Is a staged site faster than its dense layer, here and on these inputs? Timed in turn.

A site is timed alone: its dense layer as ONNX Runtime would fuse it, against its staged node, on
what the original model computes for the given inputs. Where the model does not fit a cache its
weights are out of it whenever a site runs, so they are put out of it before every timed run. Whole-model
effects (layouts) are the caller's to check on the whole model.

On several threads the two sides take turns in bursts, and each burst waits until the other session's
threads sleep. Its first run, which wakes its own threads, is not timed: in a whole model a site finds them awake.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from exprune_cli.dense_layer import end_nodes, linear_nodes, result_types
from exprune_cli.model import Model, load
from exprune_cli.rewrite import rewrite
from exprune_cli.sessions import REST, Feeds, open_session, run
from exprune_cli.site_values import SiteValues, read_by
from exprune_cli.sites import Site, SitePlan
from exprune_cli.weights import in_memory

#: A site is staged only if it wins by more than this: the noise of a paired median.
MARGIN = 1.03
#: Without a measurement: the share of FLOPs that must be saved before a site is expected to be
#: faster. Skipping single outputs costs a Conv and a batched Gemm more than it saves below this.
EXPECTED_SHARE = 0.65
_PAIRS = (7, 60)  # least and most
_BURST = 4  # timed runs in a row, on several threads
_INNER_CACHE, _LAST_CACHE = 2**20, 32 * 2**20  # bytes, where the system does not tell


@dataclass(frozen=True)
class SiteTiming:
    """Median times of one site per run, in microseconds, and the median paired ratio.

    ``threads``: threads inside an operator; 0 for ONNX Runtime's default.
    """

    dense_us: float
    staged_us: float
    speedup: float
    threads: int = 1


def thread_counts() -> tuple[int, ...]:
    """The numbers of threads that a staged site has to be faster at: one, and what a session has by default."""
    return (1,) if processors() == 1 else (1, 0)


def processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cache_sizes() -> list[int]:
    """Sizes of the first processor's caches in bytes, rising; those of a common machine where it does not tell."""
    sizes = set()
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        unit = {"K": 2**10, "M": 2**20}.get(text[-1:], 1)
        digits = text.rstrip("KM")
        if digits.isdigit():
            sizes.add(int(digits) * unit)
    return sorted(sizes) or [_INNER_CACHE, _LAST_CACHE]


def cache_filler(weights: int) -> np.ndarray | None:
    """Floats to read before each run of a layer, so that it finds its weights where the whole model would.

    Args:
        weights: Bytes of all layers' weights.

    Returns:
        What fills the largest cache twice, if the weights do not fit it well. If they do, but not the one before,
        as much as the weights are: a layer's own then come from the largest cache. None if they stay in the inner one.
    """
    *inner, last = cache_sizes()
    if weights > last // 2:
        return np.ones(last // 2, np.float32)
    return np.ones(weights // 4, np.float32) if weights > max(inner, default=0) else None


class SiteTimer:
    """One site, dense against staged.

    Args:
        model: The original model.
        site: One of its sites.
        plan: How it would be staged.
        rank: Rank of the site's input.
        evict: Memory that is read before each run, so that weights are out of the caches; None where
            the model's stay in them. See :func:`cache_filler`.
        threads: Threads inside an operator; 0 for ONNX Runtime's default, one per core.
    """

    def __init__(
        self,
        model: Model,
        site: Site,
        plan: SitePlan,
        rank: int,
        *,
        evict: np.ndarray | None = None,
        threads: int = 1,
    ) -> None:
        dense = load(_cut_out(model, site, rank) if site.separate_pad else site_model(model, site, rank))
        alone = dataclasses.replace(
            site,
            name="site",
            input="in_0",
            offset="in_1" if site.offset else None,
            output="out",
            values="values" if site.kind == "top_k" else None,
            nodes=_site_nodes(site, dense.proto),
        )
        staged, _ = rewrite(dense, [alone], {"site": dataclasses.replace(plan, site="site", most_rows=None)})
        self._sessions = [open_session(dense.proto, threads=threads)]
        del dense  # a large head is some hundred MB, and several times that while a session is opened
        self._sessions.append(open_session(staged, threads=threads))
        self._evict = evict
        self._threads = threads

    def time(self, inputs: Sequence[Feeds], seconds: float) -> SiteTiming:
        """Times the two in turn on ``inputs`` for about so many seconds."""
        times: tuple[list[float], list[float]] = ([], [])
        for session in self._sessions:
            run(session, inputs[0], "timing")
        start = time.perf_counter()
        burst = 1 if self._threads == 1 else _BURST
        for turn in range(0, _PAIRS[1], burst):
            for side in (0, 1) if turn // burst % 2 == 0 else (1, 0):
                if self._threads != 1:
                    time.sleep(REST)
                    self._sessions[side].run(None, inputs[turn % len(inputs)])
                for each in range(turn, turn + burst):
                    if self._evict is not None:
                        self._evict.max()
                    begin = time.perf_counter()
                    self._sessions[side].run(None, inputs[each % len(inputs)])
                    times[side].append(time.perf_counter() - begin)
            if turn + burst >= _PAIRS[0] and time.perf_counter() - start > seconds:
                break
        dense, staged = (np.array(values) for values in times)
        return SiteTiming(
            float(np.median(dense)) * 1e6,
            float(np.median(staged)) * 1e6,
            float(np.median(dense / staged)),
            self._threads,
        )


def _site_nodes(site: Site, dense: onnx.ModelProto) -> tuple[str, ...]:
    """First outputs of the nodes of a site's own model that its staged node replaces."""
    if site.separate_pad:
        return tuple("out" if name == site.output else name for name in site.nodes)
    return tuple(node.output[0] for node in dense.graph.node)


def site_inputs(model: Model, sites: Sequence[Site], feeds: Sequence[Feeds]) -> dict[str, list[Feeds]]:
    """What every site reads in each run of the model: ``in_0`` and, for an offset, ``in_1``."""
    source = SiteValues(model, sites)
    result: dict[str, list[Feeds]] = {site.name: [] for site in sites}
    for feed in feeds:
        values = source.of(sites, feed, "timing")
        for site in sites:
            result[site.name].append({f"in_{i}": values[name] for i, name in enumerate(read_by(site))})
    return result


def with_rows(inputs: Sequence[Feeds], rows: int, transposed: bool) -> list[Feeds]:
    """Inputs of ``rows`` rows each, cut from all rows of ``inputs``; repeated where they are too few."""
    stacks = {}
    for name in inputs[0]:
        parts = [np.atleast_2d(feed[name].T if transposed else feed[name]) for feed in inputs]
        stacks[name] = np.concatenate([part.reshape(-1, part.shape[-1]) for part in parts])
    rank = np.ndim(inputs[0]["in_0"])
    total = len(stacks["in_0"])
    result: list[Feeds] = []
    for start in range(max(1, min(total // rows, 8))):
        feed = {}
        for name, stack in stacks.items():
            cut = stack[np.arange(start * rows, (start + 1) * rows) % total]
            feed[name] = cut.T if transposed else cut.reshape((1,) * (rank - 2) + cut.shape)
        result.append(feed)
    return result


def site_model(model: Model, site: Site, rank: int) -> onnx.ModelProto:
    """A model of the dense layer alone, everything folded; inputs ``in_0`` and, for an offset, ``in_1``."""
    weight, nodes = site.load_weight(), []
    initializers = [numpy_helper.from_array(site.bias.astype(np.float32), "bias")]
    if site.conv:
        shape = (site.outputs, site.groups, *site.conv.kernel)
        attributes: dict[str, Any] = {
            k: list(getattr(site.conv, k)) for k in ("strides", "dilations", "pads")
        }
        initializers.append(numpy_helper.from_array(weight.reshape(shape), "W"))
        nodes.append(helper.make_node("Conv", ["in_0", "W", "bias"], ["linear"], name="site", **attributes))
    else:
        initializers.append(numpy_helper.from_array(np.ascontiguousarray(weight[:, :, 0].T), "W"))
        nodes += linear_nodes(site, "in_0", "W", "bias", "linear", rank=rank, outputs_first=False)
        if site.transposed_input:
            nodes[0].attribute.append(helper.make_attribute("transA", 1))
    inputs = [helper.make_tensor_value_info("in_0", TensorProto.FLOAT, [f"d{i}" for i in range(rank)])]
    last = "linear"
    if site.offset:
        inputs.append(
            helper.make_tensor_value_info("in_1", TensorProto.FLOAT, [f"o{i}" for i in range(rank)])
        )
        nodes.append(helper.make_node("Add", ["linear", "in_1"], ["sum"]))
        last = "sum"
    names = ["values", "out"] if site.kind == "top_k" else ["out"]
    nodes += end_nodes(site, last, names)
    out_rank = rank - 1 if site.kind == "argmax" and not site.keepdims else rank
    outputs = [
        helper.make_tensor_value_info(name, dtype, [f"{name}{i}" for i in range(out_rank)])
        for name, dtype in zip(names, result_types(site), strict=True)
    ]
    graph = helper.make_graph(nodes, "site", inputs, outputs, initializers)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", model.opset)], ir_version=max(8, model.proto.ir_version)
    )


def _cut_out(model: Model, site: Site, rank: int) -> onnx.ModelProto:
    """The site's nodes as the user's model has them, and what computes their constants.

    Whether ONNX Runtime fuses a Pad into its Conv, which can make it faster or slower, depends on how
    the pads are written: only the model's own form times as the model does.
    """
    source = model.proto.graph
    renamed = {site.input: "in_0", site.output: "out"} | ({site.offset: "in_1"} if site.offset else {})
    makers = {name: node for node in source.node for name in node.output if name}
    wanted, constants = [site.output], set()
    kept: list[onnx.NodeProto] = []
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
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [f"{name}_{axis}" for axis in range(rank)])
        for name in ("in_0", *(["in_1"] if site.offset else []))
    ]
    output = helper.make_tensor_value_info("out", TensorProto.FLOAT, [f"r{axis}" for axis in range(rank)])
    initializers = [in_memory(tensor) for tensor in source.initializer if tensor.name in constants]
    graph = helper.make_graph(nodes, "site", inputs, [output], initializers)
    proto = helper.make_model(graph, ir_version=max(8, model.proto.ir_version))
    del proto.opset_import[:]
    proto.opset_import.extend(model.proto.opset_import)
    return proto
