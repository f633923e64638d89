"""Why operators stay dense, in groups, and what could be done about it."""

from __future__ import annotations

from collections.abc import Sequence

from exprune_cli.report_data import RefusalGroup, SiteReport

_QUANTISE = "where no ReLU follows, quantising the layer is what saves time"
_FOLD = "export the model in inference mode, with constants folded"

#: By a refusal's code: the reason for a whole group, and the advice.
_ADVICE: dict[str, tuple[str, str]] = {
    "scores-returned": (
        "the model returns all scores of a large head",
        "if the best few are enough, --top-k OUTPUT=K returns them, found from a fraction of the weights",
    ),
    "graph-output": (
        "its result is an output of the model",
        (
            "nothing follows that could make a part of it needless; end the model in an ArgMax or TopK if "
            "the best classes are all you use"
        ),
    ),
    "other-activation": ("no ReLU, ArgMax or TopK follows", _QUANTISE),
    "several-readers": (
        "its result is read in more than one place",
        "stage it by giving the ReLU its result alone: something else needs the values below zero",
    ),
    "none": ("no pattern fits what surrounds it", _QUANTISE),
    "excluded": ("excluded by --exclude", "take it out of --exclude to have it looked at"),
    "opset": ("the model's opset is too old", "convert it with onnx.version_converter"),
    "graph": ("the graph could not be read as a whole", "export the model again, without custom structures"),
    "subgraph": ("it is inside an If, Loop or Scan", "export the model without the branch or loop around it"),
    "subgraph-reader": ("its result is read inside a subgraph", "export the model without the subgraph"),
    "quantised": ("it is quantised already", "optimise the float model first, then quantise the rest"),
    "fused": ("ONNX Runtime fused it", "optimise the model as it was exported, before ONNX Runtime saves it"),
    "recurrent": ("recurrent operators are not staged", "there is no ReLU inside them to skip for"),
    "transposed-conv": ("a ConvTranspose is not staged", ""),
    "grouped-conv": ("grouped and depthwise Convs are not staged", "their sums are too short to stop early"),
    "conv-rank": ("only 1-D and 2-D Convs are staged", ""),
    "auto-pad": ("auto_pad with an open input size", "export the model with a fixed size or explicit pads"),
    "negative-pads": ("negative pads are not staged", "crop in a Slice before the Conv instead"),
    "dtype": ("only float32 weights are staged", "optimise the float32 model, and convert it afterwards"),
    "computed-weight": ("its weight is computed, not constant", _FOLD),
    "computed-bias": ("its bias is computed, not constant", _FOLD),
    "overridable-weight": (
        "callers may set its weight as an input",
        "export the model with its weights as initializers only (IR version 4 or newer)",
    ),
    "constant-input": ("both operands are constant", _FOLD),
    "sparse-weight": (
        "its weight is a sparse initializer",
        "store the weight dense: zeros are counted as none",
    ),
    "shared-weight": ("its weight is shared with a site that is staged", "give it a weight of its own"),
    "duplicate-name": ("another node has its name", "give all nodes names of their own"),
    "offset-of-site": (
        "it is a staged site's known offset",
        "nothing to do: the larger of the two is staged",
    ),
    "too-small": ("it is too small to be split", ""),
    "training": ("it is followed by a layer in training mode", "export the model in inference mode"),
    "dropout-mask": ("the mask of its Dropout is read", "export the model in inference mode"),
    "weight-on-the-left": ("its weight is the left operand", "write the product as input times weight"),
    "transposed-input": ("it reads its input transposed", "transpose before the layer instead"),
    # What the planner found not worth it, by how its reasons begin.
    "slower": (
        "staged, it was measured slower here",
        "--objective flops stages it all the same; another machine or batch size may decide otherwise",
    ),
    "rows-open": (
        "staged, it is faster for some batch sizes only",
        "give the size that matters with --batch, or export the model with a fixed one",
    ),
    "not-expected": (
        "staged, it is not expected to be faster",
        "measure instead of guessing: leave --no-measure out; give --data",
    ),
    "no-saving": (
        "its tests would cost more than they save",
        "give --data, or allow more with --max-drop; few of its outputs may be zero at all",
    ),
}
_STARTS = {
    "slower": ("slower here", "faster alone"),
    "rows-open": ("faster at", "faster up to"),
    "not-expected": ("not expected",),
}


def group_code(site: SiteReport) -> str:
    """The code of the group that a dense site belongs to."""
    if site.code != "not-worth-it":
        return site.code or ""
    for code, starts in _STARTS.items():
        if site.reason.startswith(starts):
            return code
    return "no-saving"


def refusal_groups(sites: Sequence[SiteReport], flops_dense: float | None) -> list[RefusalGroup]:
    """Groups the dense sites of a report that have a code.

    Args:
        sites: All sites.
        flops_dense: FLOPs of the whole model; None if unknown.

    Returns:
        The groups, the largest share of the work first.
    """
    members: dict[str, list[SiteReport]] = {}
    for site in sites:
        if not site.staged and site.code:
            members.setdefault(group_code(site), []).append(site)
    groups = []
    for code, found in members.items():
        reason, advice = _ADVICE.get(
            code, (found[0].reason if len(found) == 1 else code.replace("-", " "), "")
        )
        work = [site.flops_dense for site in found]
        known = [value for value in work if value is not None]
        share = sum(known) / flops_dense if flops_dense and len(known) == len(work) else None
        groups.append(RefusalGroup(code, reason, advice, [site.name for site in found], share))
    return sorted(groups, key=lambda group: -(group.share or 0))
