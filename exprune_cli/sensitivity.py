"""What a site's error does to the model's output, measured: stage one site, look at the output.

No gradients: each site in turn is staged alone, as carefully, as usual and as boldly as plans are, and
the model is run on a few samples. The error that pruning really makes, with its own signs and
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
    from exprune_cli.data import Batch, DataSet

#: Shares of lost energy at which a site is measured; small errors add up independently of each other,
#: large ones have a mean that does not, so that the output's error grows faster than the energy.
PROBES = (0.003, 0.015, 0.06, 0.2, 0.5)
#: Samples that all sites and probes together may be run on, and at least and at most so many each.
_RUNS = 4000
_LEAST, _MOST = 24, 128
#: Floats of scores that are kept; fewer samples are taken of models with more.
_SCORES = 2**24
#: Of the rows, those with the least margins: they say how many margins there are at zero, and what a swap loses.
_SHARE = 0.1
#: What a head loses of new rows over what it loses of those that its margins are fitted to. An order of magnitude, set
#: on validation data of relu_lm, whose calibration samples are of few files; not measured for a model.
_NEW_ROWS = 10.0

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
    threads: int = 0,
    labelled: bool = False,
) -> Sensitivity | None:
    """Measures all ReLU sites.

    Args:
        model: The original; not changed.
        sites: Its sites.
        steps: Plans of all sites, from the safest to the boldest.
        data: Samples; a few of them are used.
        seed: Chooses them.
        progress: Called with (sites done, sites).
        threads: Threads inside an operator; 0 for ONNX Runtime's default.
        labelled: Whether predictions are compared with the data's labels, not with the original's.

    Returns:
        None where the output is nothing that errors can be measured on.
    """
    outputs = decisive_outputs(model.proto)
    probes = [(site, plan) for site in sites for plan in _probes(site, steps)]
    if not outputs or not probes or not len(data):
        return None
    count = int(np.clip(_RUNS // len(probes), _LEAST, _MOST))
    batches = list(data.take(min(count, len(data)), seed).batches(16))
    feeds = [batch.feeds for batch in batches]
    before = _run(model.proto, outputs, feeds, threads)
    if not before:
        return None
    feeds = feeds[: len(before[0])]
    margins = _margins(outputs[0], before[0], before[0]) if outputs[0].axis is not None else None
    measured: dict[str, list[tuple[float, float]]] = {}
    for done, (site, plan) in enumerate(probes):
        alone = {other.name: dense(other, "") for other in sites} | {site.name: plan}
        after = _run(rewrite(model, sites, alone)[0], outputs, feeds, threads)
        error = _error(outputs, before, after, margins)
        measured.setdefault(site.name, []).append((plan.lost_energy, error))
        if progress is not None:
            progress(done + 1, len(probes))
    density = None
    if margins is not None:
        every = np.concatenate(margins)
        density = _SHARE / (float(np.quantile(every, _SHARE)) + 1e-30)
    # A site whose error did not reach these samples' outputs is not free: the least that another costs.
    slopes = [error / lost for points in measured.values() for lost, error in points if error > 0]
    least = min(slopes, default=1.0)
    errors = {}
    for name, points in measured.items():
        squares = np.maximum.accumulate([max(error, least * lost) for lost, error in points])
        errors[name] = ([lost for lost, _ in points], [float(value) for value in squares])
    costs = None
    if labelled and margins is not None:
        costs = _accuracy_lost(outputs[0], before[0], margins, batches)
    return Sensitivity(errors, density, *(costs or ()))


def _accuracy_lost(
    output: _Output, scores: Sequence[np.ndarray], margins: Sequence[np.ndarray], batches: Sequence[Batch]
) -> tuple[float, float] | None:
    """Accuracy lost where the second best wins: per margin near ties, and per row of a head.

    A row loses 1 if its label names the winner, -1 if it names the second. Near ties that is a line through
    zero, fitted by least squares. None without labels for every row.
    """
    lost = []
    for score, batch in zip(scores, batches, strict=False):  # scores may have stopped early
        rows = _by_class(output, score)
        if batch.label is None or batch.label.size != len(rows) or rows.shape[1] < 2:
            return None
        second, first = np.argsort(rows, axis=1, kind="stable")[:, -2:].T
        names = batch.label.reshape(-1)
        lost.append((names == first).astype(np.float64) - (names == second))
    every = np.concatenate(lost)
    leads = np.concatenate(list(margins)).astype(np.float64)
    near = leads <= np.quantile(leads, _SHARE)
    products, squares = every[near] * leads[near], float(np.square(leads[near]).sum()) + 1e-30
    # Neither is known better than its standard error.
    swap = max(float(products.sum()), float(np.sqrt(np.square(products).sum()))) / squares
    row = max(float(every.mean()), float(np.sqrt(np.square(every).mean() / len(every))))
    return max(swap, 1e-12), _NEW_ROWS * max(row, 1e-12)


def _probes(site: Site, steps: Sequence[Plans]) -> list[SitePlan]:
    """The plans to measure a ReLU site with, losing more and more."""
    if site.kind != "relu":
        return []
    offers = [step[site.name] for step in steps if step[site.name].staged and step[site.name].lost_energy > 0]
    chosen: list[SitePlan] = []
    for share in PROBES:
        plan = next((plan for plan in offers if plan.lost_energy >= share), offers[-1] if offers else None)
        if plan is not None and (not chosen or plan.lost_energy > chosen[-1].lost_energy):
            chosen.append(plan)
    return chosen


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
    proto: onnx.ModelProto, outputs: Sequence[_Output], feeds: Sequence[Feeds], threads: int
) -> list[list[np.ndarray]]:
    """Values of each output, one array per run; stops when they take too much memory."""
    names = [output.name for output in outputs]
    session = open_session(
        proto, addition=with_outputs(proto, names, onnx.TensorProto.FLOAT), threads=threads
    )
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


def _by_class(output: _Output, scores: np.ndarray) -> np.ndarray:
    """``[R, C]``: scores of a run, the class axis last."""
    assert output.axis is not None
    return np.moveaxis(scores, output.axis, -1).reshape(-1, scores.shape[output.axis])


def _margins(
    output: _Output, scores: Sequence[np.ndarray], winners: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """By how much the class that wins in ``winners`` leads in ``scores``, one array per run."""
    result = []
    for ours, theirs in zip(scores, winners, strict=True):
        ours, theirs = _by_class(output, ours), _by_class(output, theirs)
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
        difference = sum(
            float(np.square(a - b, dtype=np.float64).sum()) for a, b in zip(ours, theirs, strict=True)
        )
        size = sum(float(np.square(b, dtype=np.float64).sum()) for b in theirs)
        total += difference / (size + 1e-30)
    return total / len(outputs)
