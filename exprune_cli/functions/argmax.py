"""Functions of a linear layer before an ArgMax: only the winning class is wanted.

``X [..., G]``, ``W_head [N, ends[0]]``, ``W_tail [N, G - ends[0]]``; ``index [...]`` (``[..., 1]``
with keepdims). Rows stand on their own: a row with one class left is decided.
"""

from __future__ import annotations

from collections.abc import Callable

from exprune_cli.functions.gemm import LAYER, SQUARES
from exprune_cli.functions.staging import (
    ALL_SURVIVE,
    NATURAL_WEIGHTS,
    VARIANCE,
    Function,
    Test,
    Z,
    signature,
    staged,
)

INPUTS = "X, order, ends, W_head, W_tail, bias"
OUTPUTS = "index, survivors"
ATTRIBUTES = ("keepdims", "select_last_index")

SETUP = """
  minus_infinity = Constant <value: tensor = float {-inf}> ()
  lowest = Constant <value: tensor = float {-3.4028235e38}> ()
  outputs = Shape (bias)
  class_by_one = Concat <axis = 0> (outputs, index_1)
  class_ones = ConstantOfShape <value: tensor = float[1] {1}> (class_by_one)
  int_0 = Constant <value: tensor = int64 {0}> ()
  int_1 = Constant <value: tensor = int64 {1}> ()
  class_count = Squeeze (outputs)
  classes = Range (int_0, class_count, int_1)
"""


def counted(mask: str, result: str) -> str:
    """Text for the number of true classes of each row, as ``[..., 1]`` float32.

    A product with ones, because ReduceSum takes its axes in different ways before opset 13. Exact
    below 2^24 classes.
    """
    return f"""
    {result}_float = Cast <to = 1> ({mask})
    {result} = MatMul ({result}_float, class_ones)
"""


def _among(mask: str, value: str, result: str) -> str:
    """Text for ``value`` with the classes outside ``mask`` out of the running, even for -inf."""
    return f"""
    {result}_low = Less ({value}, lowest)
    {result}_finite = Where ({result}_low, lowest, {value})
    {result} = Where ({mask}, {result}_finite, minus_infinity)
"""


def _of_leader(value: str, result: str) -> str:
    """Text for each row's ``value`` at its leader, as ``[..., 1]``."""
    return f"""
    {result}_only = Where (is_leader, {value}, zero)
    {result} = MatMul ({result}_only, class_ones)
"""


#: ``leader`` ``[..., 1]``: the undecided class with the largest ``rank_value``, the first of
#: equals; ``no_nan`` ``[..., 1]``: whether all of the row's undecided values can be compared.
LEADER = f"""
    is_nan = IsNaN (rank_value)
    open_nan = And (open, is_nan)
{counted("open_nan", "nans")}
    no_nan = Less (nans, one)
{_among("open", "rank_value", "ranked")}
    leader = ArgMax <axis = -1, keepdims = 1> (ranked)
    is_leader = Equal (classes, leader)
"""

#: A decided row has one class left and counts as none.
COUNT_CLASSES = f"""
{counted("left", "row_left")}
    row_decided = Equal (row_left, one)
    row_open = Where (row_decided, zero, row_left)
    row_classes = Cast <to = 7> (row_open)
    count = ReduceSum <keepdims = 0> (row_classes)
"""

THRESHOLD = Test(
    inputs="scale, shift, margin",
    attributes=ATTRIBUTES,
    setup=SETUP,
    check=f"""
    scale_row = Gather (scale, check)
    shift_row = Gather (shift, check)
    margin_row = Gather (margin, check)
    scaled = Mul (scale_row, partial)
    estimate = Add (scaled, shift_row)
    upper = Add (estimate, margin_row)
    rank_value = Sub (estimate, margin_row)
{LEADER}
{_of_leader("ranked", "best")}
    upper_worse = Less (upper, best)
    lower_worse = Less (rank_value, best)
    worse = And (upper_worse, lower_worse)
    pruned = And (worse, no_nan)
""",
)

#: ``spread``: the sum of the squared terms of (class minus leader), as w_j^2 + w_l^2 - 2 w_j w_l
#: so that no [rows, N, k] tensor is needed.
STATS = Test(
    inputs="",
    attributes=(*ATTRIBUTES, "z"),
    setup=f"""{SETUP}{Z}
  bias_share = Div (bias, groups)
""",
    check=f"""{SQUARES}
    mean_term = Div (partial, k)
    rank_value = Add (mean_term, bias_share)
{LEADER}
    seen_groups = Slice (order, index_0, end)
    seen_x = Gather <axis = -1> (X, seen_groups)
    seen_w = Slice (tested_w, index_0, end, axis_0)
    class_w = Transpose (seen_w)
    leader_shape = Shape (leader)
    row_shape = Slice (leader_shape, index_0, flat)
    leader_of_row = Reshape (leader, row_shape)
    leader_w = Gather <axis = 0> (class_w, leader_of_row)
    seen_x_squared = Mul (seen_x, seen_x)
    leader_wx = Mul (leader_w, seen_x_squared)
    cross = MatMul (leader_wx, seen_w)
    cross_twice = Add (cross, cross)
{_of_leader("squares_now", "leader_squares")}
    both_squares = Add (squares_now, leader_squares)
    spread = Sub (both_squares, cross_twice)
{_of_leader("partial", "leader_sum")}
    behind = Sub (partial, leader_sum)
{VARIANCE.format(sums="behind", squares="spread")}
    leader_bias = Gather (bias, leader)
    bias_behind = Sub (bias, leader_bias)
    bias_behind_share = Div (bias_behind, groups)
    mean_behind = Div (behind, k)
    mean = Add (mean_behind, bias_behind_share)
    worse = Less (mean, cut)
    is_other = Not (is_leader)
    worse_other = And (worse, is_other)
    pruned = And (worse_other, no_nan)
""",
    squares=True,
)


def argmax(value: str, opset: int) -> str:
    """Text for ``index``. Before opset 12 ArgMax finds the first of equals only.

    There the classes are looked at in reverse for the last one. ``select_last_index`` becomes a
    number as the rank of a reduced vector: 1 if its axis is kept, else 0.
    """
    if opset >= 12:
        return f"""
  index = ArgMax <axis = -1, keepdims: int = @keepdims, select_last_index: int = @select_last_index> ({value})
"""
    return f"""
  any_vector = ArgMax <axis = 0, keepdims: int = @select_last_index> (bias)
  any_shape = Shape (any_vector)
  from_last = Size (any_shape)
  first_class = Constant <value: tensor = int64 {{0}}> ()
  step = Constant <value: tensor = int64 {{1}}> ()
  all_classes = Size (bias)
  last_class = Sub (all_classes, step)
  forwards = Range (first_class, all_classes, step)
  backwards = Sub (last_class, forwards)
  is_last = Equal (from_last, step)
  looked_at = Where (is_last, backwards, forwards)
  viewed = Gather <axis = -1> ({value}, looked_at)
  found = ArgMax <axis = -1, keepdims: int = @keepdims> (viewed)
  index = Gather (looked_at, found)
"""


def finish_index(opset: int) -> str:
    """Text for the index of each row's best undecided class.

    A decided row's sums may be partial, even NaN: its one class wins whatever they are.
    """
    return f"""
  score = Add (total, bias)
{counted("undecided", "classes_left")}
  decided = Equal (classes_left, one)
  settled_score = Where (decided, zero, score)
{_among("undecided", "settled_score", "candidates")}
{argmax("candidates", opset)}
"""


def _staged(test: Test, doc: str) -> Callable[[int], Function]:
    inputs = f"{INPUTS}, {test.inputs}".rstrip(", ")
    return lambda opset: Function(
        signature(inputs, OUTPUTS, test.attributes),
        staged(LAYER, test, COUNT_CLASSES, finish_index(opset)),
        doc,
    )


def _bound(opset: int) -> Function:
    return Function(
        signature(f"{INPUTS}, radius, slack", OUTPUTS, ATTRIBUTES),
        f"""{NATURAL_WEIGHTS}
  columns = Transpose (weights)
  product = MatMul (X, columns)
  computed = Add (product, bias)
{argmax("computed", opset)}
{ALL_SURVIVE.format(result="computed")}""",
        "The index of the largest output of a linear layer, without loss: the kernel leaves out classes "
        "that a sound bound shows cannot win. Nothing is left out here: this is the dense layer.",
    )


FUNCTIONS: dict[str, Callable[[int], Function]] = {
    "PrefixArgMaxThreshold": _staged(
        THRESHOLD,
        "The index of the largest output of a linear layer, in chunks of input features: after each chunk, "
        "classes whose estimate plus margin is below the best estimate minus its margin are out. When every "
        "row has one class left the remaining chunks are skipped.",
    ),
    "PrefixArgMaxStats": _staged(
        STATS,
        "The index of the largest output of a linear layer, in chunks of input features: after each chunk, "
        "classes whose terms trail the leader's by z standard errors are out. When every row has one class "
        "left the remaining chunks are skipped.",
    ),
    "PrefixArgMaxBound": _bound,
}
