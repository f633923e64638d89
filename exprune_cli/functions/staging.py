"""The text that the functions share: the order of the groups, the Loop over checks, the ReLU.

The stages are the same for every family and test::

    partial = sums over the first chunk
    Loop over the checks:                       (it ends when nothing is undecided)
        undecided = undecided and not pruned
        If anything is undecided and a check is to come: partial += the next chunk
    If anything is undecided: total = partial + the last chunk
    result = finish(total, undecided)

The last chunk stands outside the Loop because its weights are then a constant, which ONNX Runtime
cuts and packs once; with one check nothing is cut at run time.

Names that the pieces of text agree on (all are values inside one function):

=============  ====================================================================
``weights``    all weights in the order of the reduction, groups on axis 1
``tested_w``   those of all chunks but the last, as the layer's ``product`` takes them
``bounds``     ``[C + 1]``: 0 and then ``ends``; chunk s is ``bounds[s] : bounds[s + 1]``
``head``       the sums over the first chunk
``per_output`` the shape that lets a value per output broadcast against ``head``
``partial``    in the Loop: the sums so far, over ``k`` groups (``end``: ``k`` as int64)
``open``       in the Loop: what was undecided before this check
``pruned``     what this check decides (or would, had it not been decided before)
``left``       what is undecided after this check
=============  ====================================================================

A comparison with NaN is false, so every test is written as "prune if this is true".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Function:
    """A function as text: ``<attributes> (inputs) => (outputs)``, the nodes, and a doc string."""

    signature: str
    body: str
    doc: str


@dataclass(frozen=True)
class Chunks:
    """How the groups of a chunk are taken out of ``X`` and of the weights.

    Attributes:
        groups: Given a chunk's name and the names of its first position and of its end, text that makes
            ``{name}_groups``.
        x: Given a chunk's name, the text of an op that takes its part of ``X``.
        weights: Given the names of weights, of a first position and of an end, the same for the weights.
        per_group: Name of an input with one value per group.
    """

    groups: Callable[[str, str, str], str]
    x: Callable[[str], str]
    weights: Callable[[str, str, str], str]
    per_group: str


def in_order(x_axis: int) -> Chunks:
    """Chunks of one order for all of ``X``, whose groups are on this axis."""
    return Chunks(
        groups=lambda name, start, end: f"{name}_groups = Slice (order, {start}, {end})",
        x=lambda name: f"Gather <axis = {x_axis}> (X, {name}_groups)",
        weights=lambda weights, start, end: f"Slice ({weights}, {start}, {end}, w_axis)",
        per_group="order",
    )


@dataclass(frozen=True)
class Layer:
    """How a family of layers multiplies.

    Attributes:
        chunks: How the groups of a chunk are taken.
        product: Given the names of an input and of its weights, the text of the linear op.
        w_axis: Axis of the groups in the weights as ``product`` takes them.
        setup: Text that makes ``per_output``, ``all_weights`` and ``head_weights`` (the latter
            two as ``product`` takes them) of ``weights`` and ``W_head``.
        weights: Text that makes ``weights``.
    """

    chunks: Chunks
    product: Callable[[str, str], str]
    w_axis: int
    setup: str
    weights: str = "weights = Concat <axis = 1> (W_head, W_tail)"


@dataclass(frozen=True)
class Test:
    """A test: the inputs it adds, text before the Loop, text in it that ends in ``pruned``.

    With ``squares`` the Loop also carries a sum called ``squares``, which the text must bring up
    to the current chunk under the name ``squares_now``.
    """

    inputs: str
    attributes: tuple[str, ...]
    setup: str
    check: str
    squares: bool = False


CONSTANTS = """
  zero = Constant <value: tensor = float {0}> ()
  one = Constant <value: tensor = float {1}> ()
  index_0 = Constant <value: tensor = int64[1] {0}> ()
  index_1 = Constant <value: tensor = int64[1] {1}> ()
  index_2 = Constant <value: tensor = int64[1] {2}> ()
  axis_0 = Identity (index_0)
  flat = Constant <value: tensor = int64[1] {-1}> ()
  true = Constant <value: tensor = bool {1}> ()
"""

#: The attribute ``z`` as a tensor. Constant takes no float attribute before opset 12; Gemm's factor
#: does it for all, and of the ops with a float attribute the reference evaluator takes this one.
Z = """
  one_by_one = Constant <value: tensor = float[1,1] {1}> ()
  z_by_one = Gemm <alpha: float = @z> (one_by_one, one_by_one)
  z = Squeeze (z_by_one)
"""

#: Weights back in the model's own order. Only constants go in, so ONNX Runtime folds it all.
NATURAL_WEIGHTS = """
  ordered = Concat <axis = 1> (W_head, W_tail)
  groups = Shape (order)
  sorted, positions = TopK <axis = 0, largest = 0> (order, groups)
  weights = Gather <axis = 1> (ordered, positions)
"""

#: Every check of a lossless function reports all outputs: nothing is skipped there. Of ``{result}``
#: only the shape is read, so that ONNX Runtime folds this where the shape is fixed.
ALL_SURVIVE = """
  check_after = Constant <value: tensor = int64[1] {{1}}> ()
  chunks = Shape (ends)
  checks = Sub (chunks, check_after)
  result_shape = Shape ({result})
  outputs = ReduceProd <keepdims = 0> (result_shape)
  survivors = Expand (outputs, checks)
"""

#: ``Y`` of ``computed``: Relu, or Clip with an upper end; both hand NaN on. The condition is a
#: constant, so ONNX Runtime takes the If away and fuses its one operator into the layer.
RELU = """
  ceiling = Squeeze (max)
  infinity = Constant <value: tensor = float {inf}> ()
  is_relu = Equal (ceiling, infinity)
  Y = If (is_relu) <then_branch = relu () => (float[] positive) {
    positive = Relu (computed)
  }, else_branch = clip () => (float[] clipped) {
    clipped = Clip (computed, zero, ceiling)
  }>
"""

#: ``count`` for a layer before a ReLU: every undecided output.
COUNT_OUTPUTS = """
    left_number = Cast <to = 6> (left)
    left_count = ReduceSum <keepdims = 0> (left_number)
    count = Cast <to = 7> (left_count)
"""


#: ``survivors`` of an op that reports its work: those of the checks, then what each chunk took.
REPORT_WORK = """
  head_work_row = Reshape (head_work, flat)
  works_row = Reshape (works, flat)
  survivors = Concat <axis = 0> (checked, head_work_row, works_row, no_survivors)
"""


def signature(inputs: str, outputs: str, attributes: tuple[str, ...] = ()) -> str:
    """The head of a function, without its name."""
    listed = f"<{', '.join(attributes)}> " if attributes else ""
    return f"{listed}({inputs}) => ({outputs})"


def chunk(layer: Layer, name: str, first: str, last: str) -> str:
    """Text that cuts the groups from ``bounds[first]`` to ``bounds[last]`` out of X and weights.

    Makes ``{name}_start``, ``{name}_end``, ``{name}_x`` and ``{name}_w``.
    """
    return f"""
    {name}_start = Gather (bounds, {first})
    {name}_end = Gather (bounds, {last})
    {layer.chunks.groups(name, f"{name}_start", f"{name}_end")}
    {name}_x = {layer.chunks.x(name)}
    {name}_w = {layer.chunks.weights("tested_w", f"{name}_start", f"{name}_end")}
"""


def staged(layer: Layer, test: Test, count: str, finish: str, work: tuple[str, str] | None = None) -> str:
    """The nodes of a staged function.

    Args:
        layer: How the layer multiplies.
        test: What a check decides.
        count: Text that makes ``count`` (scalar int64: what is still undecided) of ``left``.
        finish: Text that makes the op's first output of ``total`` and ``undecided``.
        work: For an op that reports its work as well: text that makes ``head_work`` (scalar int64) before
            the Loop, and text in it that makes ``work`` of ``left``, for the chunk that follows the check.
    """
    state_in, state_out, state = ", float[] squares", ", float[] squares_kept", ", no_squares"
    squares = "squares_kept = Identity (squares_now)"
    no_squares = "no_squares = ConstantOfShape <value: tensor = float[1] {0}> (head_shape)"
    result = ", all_squares"
    head_work, next_work = work or ("", "")
    works, work_out = (", works", ", int64 work") if work else ("", "")
    survivors = "checked" if work else "survivors"
    reported = REPORT_WORK if work else ""
    if not test.squares:
        state_in = state_out = state = squares = no_squares = result = ""
    return f"""{CONSTANTS}
  {layer.weights}
  bounds = Concat <axis = 0> (index_0, ends)
  group_count = Shape ({layer.chunks.per_group})
  groups = Cast <to = 1> (group_count)
{layer.setup}
  head_end = Slice (ends, index_0, index_1)
  {layer.chunks.groups("head", "index_0", "head_end")}
  head_x = {layer.chunks.x("head")}
  head = {layer.product("head_x", "head_weights")}
  head_shape = Shape (head)
  everything = ConstantOfShape <value: tensor = bool[1] {{1}}> (head_shape)
  {no_squares}
{head_work}
{test.setup}
  chunks = Shape (ends)
  checks = Sub (chunks, index_1)
  w_axis = Constant <value: tensor = int64[1] {{{layer.w_axis}}}> ()
  last_start = Gather (bounds, checks)
  last_end = Gather (bounds, chunks)
  {layer.chunks.groups("last", "last_start", "last_end")}
  last_w = {layer.chunks.weights("all_weights", "last_start", "last_end")}
  tested_w = {layer.chunks.weights("all_weights", "index_0", "last_start")}
  tested{result}, undecided, counts{works} = Loop (checks, true, head{state}, everything) <body = stage
    (int64 check, bool going, float[] partial{state_in}, bool[] open)
    => (bool more, float[] grown{state_out}, bool[] left, int64 count{work_out}) {{
    at = Reshape (check, index_1)
    after = Add (at, index_1)
    end = Gather (bounds, after)
    k = Cast <to = 1> (end)
{test.check}
    kept = Not (pruned)
    left = And (open, kept)
    {squares}
{count}
{next_work}
    nothing = Squeeze (index_0)
    more = Greater (count, nothing)
    to_come = Less (after, checks)
    grow = And (more, to_come)
    grown = If (grow) <then_branch = next_chunk () => (float[] sum) {{
      after_next = Add (at, index_2)
{chunk(layer, "next", "after", "after_next")}
      part = {layer.product("next_x", "next_w")}
      sum = Add (partial, part)
    }}, else_branch = no_chunk () => (float[] same) {{
      same = Identity (partial)
    }}>
  }}>
  taken = Reshape (counts, flat)
  taken_count = Shape (taken)
  missing = Sub (checks, taken_count)
  no_survivors = ConstantOfShape <value: tensor = int64[1] {{0}}> (missing)
  {survivors} = Concat <axis = 0> (taken, no_survivors)
{reported}
  after_last_check = Gather ({survivors}, flat)
  unfinished = Greater (after_last_check, index_0)
  total = If (unfinished) <then_branch = last_chunk () => (float[] finished) {{
    last_x = {layer.chunks.x("last")}
    last_part = {layer.product("last_x", "last_w")}
    finished = Add (tested, last_part)
  }}, else_branch = all_decided () => (float[] unchanged) {{
    unchanged = Identity (tested)
  }}>
{finish}"""


#: Finish of a layer before a ReLU. The last Reshape changes nothing; it tells shape inference the
#: shape that a Loop loses. Clip hands NaN on.
FINISH_RELU = """
  value = Add (total, off)
  ceiling = Squeeze (max)
  activated = Clip (value, zero, ceiling)
  masked = Where (undecided, activated, zero)
  Y = Reshape (masked, head_shape)
"""

#: ``off``: all that is added to the sums before the ReLU.
OFFSET = """
  bias_out = Reshape (bias, per_output)
  off = Add (bias_out, offset)
"""

#: Prune where ``scale * partial + off < limit``.
THRESHOLD = Test(
    inputs="scale, limit",
    attributes=(),
    setup=OFFSET,
    check="""
    scale_row = Gather (scale, at)
    scale_out = Reshape (scale_row, per_output)
    limit_row = Gather (limit, at)
    limit_out = Reshape (limit_row, per_output)
    scaled = Mul (scale_out, partial)
    estimate = Add (scaled, off)
    pruned = Less (estimate, limit_out)
""",
)

#: ``variance``, of ``spread`` (the sum of squares) and ``partial``-like sums; 0 for one term.
#: Rounding may make it negative; Where, unlike a maximum, leaves a NaN what it is.
VARIANCE = """
    sum_squared = Mul ({sums}, {sums})
    mean_square = Div (sum_squared, k)
    deviation = Sub ({squares}, mean_square)
    k_minus_1 = Sub (k, one)
    rough = Div (deviation, k_minus_1)
    one_term = Equal (end, index_1)
    negative = Less (rough, zero)
    no_spread = Or (one_term, negative)
    variance = Where (no_spread, zero, rough)
    variance_of_mean = Div (variance, k)
    error = Sqrt (variance_of_mean)
    cut = Mul (z, error)
"""


def stats(squares: str) -> Test:
    """The Wald test: prune where the terms' mean is ``z`` standard errors below 0.

    Args:
        squares: Text that makes ``squares_now``: ``squares`` plus the squared terms of the chunk
            that the check ends with.
    """
    return Test(
        inputs="",
        attributes=("z",),
        setup=f"""{OFFSET}{Z}
  off_share = Div (off, groups)
""",
        check=f"""{squares}{VARIANCE.format(sums="partial", squares="squares_now")}
    mean_term = Div (partial, k)
    mean = Add (mean_term, off_share)
    pruned = Less (mean, cut)
""",
        squares=True,
    )
