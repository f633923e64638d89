"""What could be gained at a model that is not optimised: from its weights, or from activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from exprune_cli.match import Matches, match
from exprune_cli.report_data import Outlook, RefusalGroup, SiteOutlook, SiteReport, Totals
from exprune_cli.sites import Calibration, Site, SitePlan, SiteStatistics

if TYPE_CHECKING:
    from exprune_cli.data import DataSet
    from exprune_cli.model import Model
    from exprune_cli.progress import Progress

#: Samples that are looked at, at most.
SAMPLES = 128
#: The share of each site's energy that the expected plans may lose.
_BUDGET = 0.003
#: Weights (outputs times groups) below this are in the caches, where reading fewer of them saves little.
_LARGE = 2**20
#: A lossless form reads a quarter of the bytes for all outputs, and all of them for those it leaves open.
_LOSSLESS_ZEROS = 0.75
#: Rows times outputs that are looked at for a site's zeros.
_ELEMENTS = 2**23


@dataclass
class Prospects:
    """What a model's sites could bring, by name, FLOPs still as shares of the dense ones.

    Attributes:
        matches: The sites.
        sites: What is known of them.
        samples: Samples that were looked at; None where only the weights were.
    """

    matches: Matches
    sites: dict[str, SiteOutlook]
    samples: int | None = None


def look_at_activations(model: Model, data: DataSet, progress: Progress | None = None) -> Prospects:
    """Runs a model on a few samples and plans every site.

    Raises:
        ExpruneError: The model fails on a sample, or a site sees no finite input.
    """
    from exprune_cli.observe import observe
    from exprune_cli.planning.planner import plan
    from exprune_cli.planning.zeros import nonzero_inputs

    matches = match(model)
    if not matches.sites:
        return Prospects(matches, {}, 0)
    some = data.take(SAMPLES, 0) if len(data) > SAMPLES else data
    show = progress.counter("looking at activations", len(some)) if progress else None
    calibration = observe(model, matches.sites, some, progress=show)
    show = progress.counter("planning", len(matches.sites)) if progress else None
    plans = plan(matches.sites, calibration, "calibrated", [_BUDGET], show, skip_zeros=True)[0]
    found = {}
    for site in matches.sites:
        zeros, alive = _zeros(site, calibration), nonzero_inputs(site, calibration.sites.get(site.name))
        found[site.name] = SiteOutlook(
            lossless=_lossless(site, zeros),
            zeros=zeros,
            flops_limit=None
            if zeros is None
            else (1 - zeros) * (1.0 if alive is None else float(alive.mean())),
            flops_expected=1 - max(0.0, _saving(site, plans[site.name])),
        )
    return Prospects(matches, found, len(some))


def _saving(site: Site, plan: SitePlan) -> float:
    """Share of a site's FLOPs that a plan is expected to save."""
    from exprune_cli.planning.chunks import plan_saving

    if plan.staged and site.kind == "sparse" and plan.pruned:
        return plan.pruned[0] - 1 / (2 * site.outputs)
    return plan_saving(site, plan)


def look_at_weights(model: Model) -> Prospects:
    """What can be said of the sites without data: which are large heads."""
    matches = match(model)
    return Prospects(
        matches, {site.name: SiteOutlook(_lossless(site, None), _losers(site)) for site in matches.sites}
    )


def _losers(site: Site) -> float | None:
    """Share of a head's classes that do not win."""
    return 1 - site.k / max(site.outputs, 1) if site.kind in ("argmax", "top_k") else None


def _lossless(site: Site, zeros: float | None) -> bool | None:
    if site.kind == "sparse":
        return None if zeros is None else zeros >= _LOSSLESS_ZEROS
    if site.conv is not None or site.outputs * site.groups < _LARGE:
        return False
    if site.kind in ("argmax", "top_k"):
        return True
    return None if zeros is None else zeros >= _LOSSLESS_ZEROS


def _zeros(site: Site, calibration: Calibration) -> float | None:
    """Share of a site's outputs (of a sparse site's inputs) that are zero on the samples."""
    if site.kind in ("argmax", "top_k"):
        return _losers(site)
    statistics = calibration.sites.get(site.name)
    if statistics is None or not statistics.elements:
        return None
    if site.kind == "sparse":
        return float(statistics.input_zeros.sum()) / (statistics.elements * site.groups)
    return _relu_zeros(site, statistics)


def _relu_zeros(site: Site, statistics: SiteStatistics) -> float | None:
    from exprune_cli.planning.chunks import known_offset

    rows = statistics.rows[: max(64, _ELEMENTS // max(site.outputs, 1))]
    if not len(rows):
        return None
    weight = site.load_weight().reshape(site.outputs, -1)
    offset = known_offset(site, statistics)
    final = rows.reshape(len(rows), -1) @ weight.T + (offset[: len(rows)] if offset.ndim == 2 else offset)
    return float(np.mean(final <= 0))


def add_outlooks(sites: Sequence[SiteReport], found: Mapping[str, SiteOutlook]) -> None:
    """Gives the sites of a report their outlooks, shares turned into FLOPs."""
    for site in sites:
        outlook = found.get(site.name)
        if outlook is None:
            continue
        dense = site.flops_dense
        limit, expected = outlook.flops_limit, outlook.flops_expected
        site.outlook = SiteOutlook(
            outlook.lossless,
            outlook.zeros,
            None if dense is None or limit is None else dense * limit,
            None if dense is None or expected is None else dense * expected,
        )


def summarise(
    sites: Sequence[SiteReport], totals: Totals, refusals: Sequence[RefusalGroup], samples: int | None
) -> Outlook:
    """The outlook of a whole model from those of its sites."""
    ready = [site for site in sites if site.outlook is not None]
    total = totals.flops_dense
    dense = [site.flops_dense for site in ready if site.flops_dense is not None]
    share = sum(dense) / total if total and len(dense) == len(ready) else None

    weights = sum(site.weights or 0 for site in sites)
    weights_share = sum(site.weights or 0 for site in ready) / weights if weights else None

    def reduction(name: str) -> float | None:
        saved = 0.0
        for site in ready:
            left = getattr(site.outlook, name)
            if left is None or site.flops_dense is None:
                return None
            saved += site.flops_dense - left
        return saved / total if total and samples is not None else None

    limit, expected = reduction("flops_limit"), reduction("flops_expected")
    part = f"{share:.0%} of the model's work" if share is not None else None
    if part is None and weights_share is not None:
        part = f"{weights_share:.0%} of the layers' weights"
    findings, needs = _sentences(ready, part, refusals, samples, expected)
    basis = "weights" if samples is None else "data"
    return Outlook(basis, samples, len(ready), share, weights_share, limit, expected, findings, needs)


def _sentences(
    ready: Sequence[SiteReport],
    part: str | None,
    refusals: Sequence[RefusalGroup],
    samples: int | None,
    expected: float | None,
) -> tuple[list[str], list[str]]:
    findings, needs = [], []
    outlooks = [site.outlook for site in ready if site.outlook is not None]
    sure = sum(outlook.lossless is True for outlook in outlooks)
    open_ = sum(outlook.lossless is None for outlook in outlooks)
    if not ready:
        findings.append("no place was found where work could be skipped")
    else:
        findings.append(f"{_count(len(ready), 'site')} with {part or 'an unknown share'} can be staged")
    if sure:
        findings.append(
            f"{_count(sure, 'site')} should be faster losslessly, without any data: about a fifth to a half of "
            "the weights is read"
        )
    if samples is None and open_:
        findings.append(
            f"for {_count(open_, 'more site' if sure else 'site')} it depends on how many zeros the ReLUs make"
        )
    convs = sum(site.flops_dense or 0 for site in ready if site.op == "Conv")
    if convs > 0.5 * sum(site.flops_dense or 0 for site in ready):
        findings.append(
            "most of it is in convolutions, which save FLOPs sooner than time: optimize times each site and keeps "
            "what is faster here, --objective flops keeps all"
        )
    if ready and samples is None:
        needs.append(
            "samples: with --data DIR this report says how many zeros there are and what they are worth"
        )
    if expected is not None and expected > 0.005:
        needs.append(
            "a limit: --max-drop says how much of the metric may be lost for it, --confidence certifies it"
        )
    for group in refusals:
        if group.code == "scores-returned":
            needs.append("a decision: " + group.advice)
    return findings, needs


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
