"""Functions of the layers with a low-rank estimate, ``U (V x)``.

``X [..., G]``, ``V [r, G]``, ``U [N, r]``, ``W [N, G]``, all else ``[N]``. One check, on the
estimate; if it leaves anything open the layer is computed, of which only that counts.
"""

from __future__ import annotations

from collections.abc import Callable

from exprune_cli.functions.argmax import ATTRIBUTES, SETUP, counted, finish_index
from exprune_cli.functions.staging import CONSTANTS, FINISH_RELU, Function, signature

INPUTS = "X, V, U, W, bias"

_ESTIMATE = f"""{CONSTANTS}
  down = Transpose (V)
  up = Transpose (U)
  columns = Transpose (W)
  reduced = MatMul (X, down)
  estimate = MatMul (reduced, up)
  head_shape = Shape (estimate)
"""

#: ``survivors`` ``[1]`` and ``total``, of the scalar float ``open_count``.
_TOTAL = """
  open_number = Cast <to = 7> (open_count)
  survivors = Reshape (open_number, flat)
  unfinished = Greater (open_count, zero)
  total = If (unfinished) <then_branch = layer () => (float[] computed) {
    computed = MatMul (X, columns)
  }, else_branch = all_decided () => (float[] unchanged) {
    unchanged = Identity (estimate)
  }>
"""


def _gemm(opset: int) -> Function:
    return Function(
        signature(f"{INPUTS}, offset, max, limit", "Y, survivors"),
        f"""{_ESTIMATE}
  off = Add (bias, offset)
  guess = Add (estimate, off)
  pruned = Less (guess, limit)
  undecided = Not (pruned)
  undecided_number = Cast <to = 1> (undecided)
  open_count = ReduceSum <keepdims = 0> (undecided_number)
{_TOTAL}
{FINISH_RELU}""",
        "A Gemm and its ReLU: outputs whose estimate of low rank is below their limit become 0. The others "
        "are computed; when there are none, nothing is.",
    )


def _argmax(opset: int) -> Function:
    return Function(
        signature(f"{INPUTS}, shift, margin", "index, survivors", ATTRIBUTES),
        f"""{_ESTIMATE}{SETUP}
  guess = Add (estimate, shift)
  is_negative = Less (margin, zero)
  width = Where (is_negative, zero, margin)
  high = Add (guess, width)
  low = Sub (guess, width)
  unknown = IsNaN (low)
  known_low = Where (unknown, minus_infinity, low)
  bar = ReduceMax <{"axes = [-1], " if opset < 18 else ""}keepdims = 1> (known_low{"" if opset < 18 else ", flat"})
  pruned = Less (high, bar)
  undecided = Not (pruned)
{counted("undecided", "row_classes")}
  row_open = Greater (row_classes, one)
  row_factor = Cast <to = 1> (row_open)
  open_classes = Mul (row_classes, row_factor)
  open_count = ReduceSum <keepdims = 0> (open_classes)
{_TOTAL}
{finish_index(opset)}""",
        "The index of the largest output of a linear layer: classes whose estimate of low rank plus margin is "
        "below the best estimate minus its margin are out. The others are computed; when every row has one "
        "class left, nothing is.",
    )


FUNCTIONS: dict[str, Callable[[int], Function]] = {
    "LowRankGemmThreshold": _gemm,
    "LowRankArgMaxThreshold": _argmax,
}
