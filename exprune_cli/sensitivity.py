"""What a site's error does to the model's output, measured: stage one site, look at the output.

No gradients: each site in turn is staged alone, at a budget where its error is well above rounding,
and the model is run on a few samples. The error that pruning really makes, with its own signs and
correlations, is what reaches the output. Where the model ends in an ArgMax, the scores before it are
compared, because a few samples hold many margins but few changed predictions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx

from exprune_cli.instrument import with_outputs
from exprune_cli.model import Model
from exprune_cli.planning.allocation import Sensitivity
from exprune_cli.planning.relu import dense
from exprune_cli.rewrite import rewrite
from exprune_cli.sessions import Feeds, open_session, run
from exprune_cli.sites import Site, SitePlan

if TYPE_CHECKING:
    from exprune_cli.data import DataSet

#: A site's share of lost energy at which it is measured, or the boldest that it offers.
PROBE = 0.01
#: Samples that all sites together may be run on, and at least so many each.
_RUNS = 2000
_LEAST, _MOST = 24, 128
#: Floats of scores that are kept; fewer samples are taken of models with more.
_SCORES = 2**24
_SHARE = 0.1

Plans = Mapping[str, SitePlan]


@dataclass(frozen=True)
class _Output:
    """A float tensor that the result hangs on, and its class axis where an ArgMax reads it."""

    name: str
    axis: int | None


def measure_sensitivity(
    model: Model,
    sites: Sequence[Site],
    steps: Sequence[Plans],
    data: DataSet,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Sensitivity | None:
    """Measures all ReLU sites.

    Args:
        model: The original; not changed.
        sites: Its sites.
        steps: Plans of all sites, from the safest to the boldest.
        data: Samples; a few of them are used.
        seed: Chooses them.
        progress: Called with (sites done, sites).

    Returns:
        None where the output is nothing that errors can be measured on.
    """
    outputs = decisive_outputs(model.proto)
    probes = {site.name: _probe(site, steps) for site in sites}
    staged = [site for site in sites if probes[site.name] is not None]
    if not outputs or not staged or not len(data):
        return None
    count = int(np.clip(_RUNS // len(staged), _LEAST, _MOST))
    feeds = [batch.feeds for batch in data.take(min(count, len(data)), seed).batches(16)]
    before = _run(model.proto, outputs, feeds)
    if not before:
        return None
    feeds = feeds[: len(before[0])]
    margins = _margins(outputs[0], before[0], before[0]) if outputs[0].axis is not None else None
    errors = {}
    for done, site in enumerate(staged):
        plan = probes[site.name]
        assert plan is not None
        alone = {other.name: dense(other, "") for other in sites} | {site.name: plan}
        after = _run(rewrite(model, sites, alone)[0], outputs, feeds)
        errors[site.name] = _error(outputs, before, after, margins) / plan.lost_energy
        if progress is not None:
            progress(done + 1, len(staged))
    density = None
    if margins is not None:
        every = np.concatenate(margins)
        density = _SHARE / (float(np.quantile(every, _SHARE)) + 1e-30)
    # A site whose error did not reach these samples' outputs is not free: the least that another costs.
    least = min((value for value in errors.values() if value > 0), default=1.0)
    return Sensitivity({name: max(value, least) for name, value in errors.items()}, density)


def _probe(site: Site, steps: Sequence[Plans]) -> SitePlan | None:
    """The plan to measure a ReLU site with: the first that loses enough to be seen."""
    if site.kind != "relu":
        return None
    offers = [step[site.name] for step in steps if step[site.name].staged and step[site.name].lost_energy > 0]
    return next((plan for plan in offers if plan.lost_energy >= PROBE), offers[-1] if offers else None)


#: Operators that hand the order of indices or values on.
_TRANSPARENT = ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten")


def decisive_outputs(proto: onnx.ModelProto) -> list[_Output]:
    """Where errors are compared: what an ArgMax that makes an output reads, else the float outputs."""
    maker = {name: node for node in proto.graph.node for name in node.output if name}
    scores, values = [], []
    for value in proto.graph.output:
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            values.append(_Output(value.name, None))
            continue
        node = maker.get(value.name)
        while node is not None and node.op_type in _TRANSPARENT and not node.domain:
            node = maker.get(node.input[0])
        if node is not None and node.op_type in ("ArgMax", "TopK") and not node.domain:
            default = 0 if node.op_type == "ArgMax" else -1
            axis = next((a.i for a in node.attribute if a.name == "axis"), default)
            scores.append(_Output(node.input[0], int(axis)))
    return scores[:1] or values


def _run(
    proto: onnx.ModelProto, outputs: Sequence[_Output], feeds: Sequence[Feeds]
) -> list[list[np.ndarray]]:
    """Values of each output, one array per run; stops when they take too much memory."""
    names = [output.name for output in outputs]
    session = open_session(proto, addition=with_outputs(proto, names, onnx.TensorProto.FLOAT))
    result: list[list[np.ndarray]] = [[] for _ in outputs]
    size = 0
    for feed in feeds:
        values = run(session, feed, "sensitivity", names)
        size += sum(value.size for value in values)
        if size > _SCORES and result[0]:
            break
        for kept, value in zip(result, values, strict=True):
            kept.append(value)
    return result if result[0] else []


def _margins(
    output: _Output, scores: Sequence[np.ndarray], winners: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """By how much the class that wins in ``winners`` leads in ``scores``, one array per run."""
    assert output.axis is not None
    result = []
    for ours, theirs in zip(scores, winners, strict=True):
        ours, theirs = (np.moveaxis(a, output.axis, -1).reshape(-1, a.shape[output.axis]) for a in (ours, theirs))
        winner = theirs.argmax(axis=1)
        at = np.arange(len(winner))
        own = ours[at, winner]
        rest = ours.copy()
        rest[at, winner] = -np.inf
        result.append(own - rest.max(axis=1))
    return result


def _error(
    outputs: Sequence[_Output],
    before: Sequence[Sequence[np.ndarray]],
    after: Sequence[Sequence[np.ndarray]],
    margins: Sequence[np.ndarray] | None,
) -> float:
    """Mean square of the margins' change, or of the values' change relative to the values'."""
    if margins is not None:
        changed = np.concatenate(_margins(outputs[0], after[0], before[0]))
        held = np.concatenate(list(margins))
        # What happens far from a tie decides nothing.
        near = held <= np.median(held)
        return float(np.mean(np.square(changed[near] - held[near], dtype=np.float64)))
    total = 0.0
    for ours, theirs in zip(after, before, strict=True):
        difference = sum(float(np.square(a - b, dtype=np.float64).sum()) for a, b in zip(ours, theirs, strict=True))
        size = sum(float(np.square(b, dtype=np.float64).sum()) for b in theirs)
        total += difference / (size + 1e-30)
    return total / len(outputs)
