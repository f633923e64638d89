"""The plain data that the steps hand to each other: sites, refusals, statistics, plans.

Nothing here knows ONNX patterns, runs a model, or touches a file. Shapes use these letters:

========  =======================================================================
``N``     outputs of a site (output features of a Gemm, output channels of a Conv)
``G``     reduction groups (input features of a Gemm, input channels of a Conv)
``T``     taps of a group (1 for a Gemm, the kernel's volume for a Conv)
``R``     sampled rows (a row is one output position: a Gemm's row, a Conv's pixel)
``S``     checks of a site (one after every chunk but the last)
========  =======================================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

#: How a site's result is used: ``relu`` zeroes it below 0, ``argmax`` keeps one index, ``top_k`` k scores,
#: ``sparse`` is a linear op whose *input* is full of a ReLU's zeros.
KINDS = ("relu", "argmax", "top_k", "sparse")
#: Output channels of a Conv that share a panel.
PANEL = 16

#: The tests of the command line, in the order of ``--test``.
TESTS = ("bound", "stats", "threshold", "calibrated")


@dataclass(frozen=True)
class ConvGeometry:
    """Geometry of a Conv, with explicit pads (``auto_pad`` is resolved when a site is matched).

    Attributes:
        kernel: Taps per spatial axis, e.g. ``(3, 3)``; one entry per spatial axis (1 or 2).
        strides: As in ONNX, one per spatial axis.
        dilations: As in ONNX, one per spatial axis.
        pads: As in ONNX, all begins and then all ends.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]

    def output_size(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Spatial size of the output for a spatial input ``size``."""
        rank = len(self.kernel)
        return tuple(
            (size[a] + self.pads[a] + self.pads[rank + a] - self.dilations[a] * (self.kernel[a] - 1) - 1)
            // self.strides[a]
            + 1
            for a in range(rank)
        )


@dataclass(frozen=True)
class Site:
    """A place in the graph where work can be cut short, in the model's own terms.

    Everything between the linear op and its ReLU or ArgMax is already folded: a
    BatchNormalization's factor into ``load_weight()``, its shift and the bias into ``bias``.

    Attributes:
        name: The linear node's name, or its first output's where it has none. Unique.
        op: ``Gemm``, ``MatMul`` or ``Conv``.
        rule: Name of the rule that found it.
        kind: One of :data:`KINDS`.
        input: Name of the linear op's data input ``X``: ``[..., G]`` for a Gemm or MatMul,
            ``[batch, G, *spatial]`` for a Conv.
        output: Name of the tensor that the site computes: the ReLU's output, the index or indices,
            or the linear op's result for a sparse site.
        outputs: ``N``.
        groups: ``G``.
        bias: ``[N]`` float32.
        weight: Name of the constant that holds the weight.
        load_weight: Returns the weight ``[N, G, T]`` float32 in the model's order. Called when
            needed, never kept: a model's weights are in memory once.
        offset: Name of a computed tensor that is added before the ReLU (a residual), or None.
        max: Upper end of a ``Clip(0, max)``; infinity for a ReLU.
        conv: Geometry, for a Conv.
        separate_pad: Some of the Conv's pads are a Pad node of the model.
        nonnegative: Whether ``X`` is known to be >= 0 (it is a ReLU's output).
        transposed_input: ``X`` is ``[G, M]`` (a Gemm with transA); its rows are its columns.
        keepdims: For ArgMax: whether the class axis stays with size 1.
        select_last_index: For ArgMax: the last of equal maxima wins.
        k: For TopK: how many classes are wanted.
        values: For TopK: name of the tensor of their scores.
        nodes: Names (first outputs) of all nodes that the staged node replaces.
    """

    name: str
    op: str
    rule: str
    kind: str
    input: str
    output: str
    outputs: int
    groups: int
    bias: np.ndarray
    load_weight: Callable[[], np.ndarray]
    weight: str = ""
    offset: str | None = None
    max: float = math.inf
    conv: ConvGeometry | None = None
    separate_pad: bool = False
    nonnegative: bool = False
    transposed_input: bool = False
    keepdims: bool = False
    select_last_index: bool = False
    k: int = 1
    values: str | None = None
    nodes: tuple[str, ...] = ()

    @property
    def taps(self) -> int:
        """``T``: weights of one output that share a reduction group."""
        return math.prod(self.conv.kernel) if self.conv else 1


@dataclass(frozen=True)
class Refusal:
    """A candidate that stays dense, and why.

    Attributes:
        name: As :attr:`Site.name`.
        op: The linear node's operator.
        rule: The rule that looked at it.
        code: Short machine-readable reason, e.g. ``grouped-conv``.
        reason: One sentence for people.
    """

    name: str
    op: str
    rule: str
    code: str
    reason: str


@dataclass
class SiteStatistics:
    """What one pass over the data says of a site. Bounded by the model, not by the data.

    ``rows`` is a uniform sample without replacement (bottom-k over seeded hash keys), so that
    statistics of shards merge into what one pass over both would have given.

    Attributes:
        rows: ``[R, G, T]`` float32, sampled inputs of the linear op (patches for a Conv).
        keys: ``[R]`` uint64, ascending: the sampling keys.
        offsets: ``[R, N]`` float32, the computed offset at those rows; None without one.
        energy: ``[G]`` float64, sum over all seen input elements of x squared, per group.
        input_zeros: ``[G]`` int64, how many of the input elements are exactly 0.
        elements: Input elements seen per group (the divisor of ``energy`` and ``input_zeros``).
        count: Rows (output positions) seen in all.
    """

    rows: np.ndarray
    keys: np.ndarray
    offsets: np.ndarray | None
    energy: np.ndarray
    input_zeros: np.ndarray
    elements: int
    count: int


@dataclass
class Calibration:
    """The content of a calibration file.

    Attributes:
        model_sha256: Digest of the model's bytes (and external data) that it belongs to.
        data_digest: Digest over all samples' bytes, in order.
        seed: Seed of the sampling.
        samples: How many samples were seen.
        sample_ids: ``[samples]`` uint64 digests of the single samples, so that a later step
            can tell which samples of a folder were not used.
        sites: Statistics by site name.
        random: Whether the samples were random numbers.
        group_ids: ``[groups]`` uint64, ascending: the groups that samples were of, so that others of the same
            groups are not taken for unseen ones; None without.
    """

    model_sha256: str
    data_digest: str
    seed: int
    samples: int
    sample_ids: np.ndarray
    sites: dict[str, SiteStatistics]
    random: bool = False
    group_ids: np.ndarray | None = None


@dataclass
class SitePlan:
    """What to do with a site: stage it in this way, or leave it dense for this reason.

    Attributes:
        site: Name of the site.
        staged: Whether it is staged.
        reason: Why it stays dense, or what was chosen, in one sentence.
        estimate: ``prefix``, ``quantized``, ``low-rank``, or None (sparse sites and dense ones).
        test: ``bound``, ``stats``, ``threshold``, ``calibrated``, ``zero`` (sparse), or None.
        order: ``[G]`` int64: position p of the reduction holds group ``order[p]``.
        ends: Cumulative group counts of the chunks; the last is ``G``.
        parameters: The test's arrays, by the op's input name, e.g. ``scale`` ``[S, N]``.
        block: For a Conv that is decided in blocks: how many neighbouring positions of a channel;
            0 for an exact Conv (one chunk, no test).
        dynamic: For a Conv in blocks: the groups of each chunk are chosen per image, by their energy; there is
            no ``order`` then.
        panel: For a Conv: blocks are of 16 output channels x one position, and so are the weights.
        alternatives: Other forms of the site at the same budget, for timing to choose from.
        z: For ``stats``: the quantile that the test statistic is compared with.
        pruned: Expected share of outputs decided at or before each check, ``[S]``; None unknown.
        lost_energy: Expected share of the site's energy (sum of squared outputs) that is lost.
        most_rows: With more rows than this the site is slower than dense, and an If takes the dense
            layer; None: never.
        fallback: For a form that alone does not win by far at every number of rows: what is taken if the whole
            model is slower with more rows than are meant.
        saved: Expected share of the site's dense FLOPs that is saved, where it does not follow from
            ``ends`` and ``pruned``.
        nonzero: Share of each chunk's weights that are not zero, where the site was statically pruned.
        input_nonzero: Expected share of each chunk's inputs that are not zero, where a Conv multiplies
            only those.
    """

    site: str
    staged: bool
    reason: str
    estimate: str | None = None
    test: str | None = None
    order: np.ndarray | None = None
    ends: tuple[int, ...] = ()
    parameters: dict[str, np.ndarray] = field(default_factory=dict)
    block: int | None = None
    dynamic: bool = False
    panel: bool = False
    alternatives: tuple[SitePlan, ...] = ()
    z: float | None = None
    pruned: tuple[float, ...] | None = None
    lost_energy: float = 0.0
    most_rows: int | None = None
    fallback: SitePlan | None = None
    saved: float | None = None
    nonzero: tuple[float, ...] = ()
    input_nonzero: tuple[float, ...] = ()
