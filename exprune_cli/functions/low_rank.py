"""Functions of the layers with a low-rank estimate, ``U (V x)``.

``X [..., G]``, ``V [r, G]``, ``U [N, r]``, ``W [N, G]``, all else ``[N]``. One check, on the
estimate; if it leaves anything open the layer is computed, of which only that counts.

A cascade checks twice: ``U`` is ``[N, r - m]``, and what it leaves open is estimated again with
``U_more [N, m]`` and the last ``m`` rows of ``V``.
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
"""

_ONE = """
  estimate = MatMul (reduced, up)
  head_shape = Shape (estimate)
"""

_FIRST_OF_TWO = """
  up_shape = Shape (U)
  down_shape = Shape (V)
  rank = Slice (up_shape, index_1, index_2)
  whole_rank = Slice (down_shape, index_0, index_1)
  reduced_first = Slice (reduced, index_0, rank, flat)
  reduced_more = Slice (reduced, rank, whole_rank, flat)
  estimate = MatMul (reduced_first, up)
  head_shape = Shape (estimate)
"""

#: ``total``, of the scalar float ``open_count``, and ``last_survivors`` ``[1]``.
_TOTAL = """
  open_number = Cast <to = 7> (open_count)
  last_survivors = Reshape (open_number, flat)
  unfinished = Greater (open_count, zero)
  total = If (unfinished) <then_branch = layer () => (float[] computed) {
    computed = MatMul (X, columns)
  }, else_branch = all_decided () => (float[] unchanged) {
    unchanged = Identity (estimate)
  }>
"""

_SURVIVORS_OF_ONE = """
  survivors = Identity (last_survivors)
"""

#: With a known shape, or an If before it, ONNX Runtime 1.17 plans the buffer of this output, which nobody may read, into
#: memory that another tensor still uses, from the second run on: Compress hides the shape.
_SURVIVORS_OF_TWO = """
  first_number = Cast <to = 7> (first_count)
  first_survivors = Reshape (first_number, flat)
  both_survivors = Concat <axis = 0> (first_survivors, last_survivors)
  both = Constant <value: tensor = bool[2] {1, 1}> ()
  survivors = Compress <axis = 0> (both_survivors, both)
"""

#: ``extra``, what the second estimate adds to the first.
_EXTRA = """
  up_more = Transpose (U_more)
  extra = MatMul (reduced_more, up_more)
"""


def _left_open(guess: str, limit: str, result: str) -> str:
    """Text for what ``guess`` leaves open."""
    return f"""
  {result}_below = Less ({guess}, {limit})
  {result} = Not ({result}_below)
"""


def _number(mask: str, result: str) -> str:
    """Text for how many of ``mask`` are true, a scalar float."""
    return f"""
  {mask}_number = Cast <to = 1> ({mask})
  {result} = ReduceSum <keepdims = 0> ({mask}_number)
"""


def _gemm(opset: int) -> Function:
    return Function(
        signature(f"{INPUTS}, offset, max, limit", "Y, survivors"),
        f"""{_ESTIMATE}{_ONE}
  off = Add (bias, offset)
  guess = Add (estimate, off)
{_left_open("guess", "limit", "undecided")}{_number("undecided", "open_count")}
{_TOTAL}{_SURVIVORS_OF_ONE}
{FINISH_RELU}""",
        "A Gemm and its ReLU: outputs whose estimate of low rank is below their limit become 0. The others "
        "are computed; when there are none, nothing is.",
    )


def _cascade_gemm(opset: int) -> Function:
    return Function(
        signature(f"{INPUTS}, offset, max, limit, U_more, limit_more", "Y, survivors"),
        f"""{_ESTIMATE}{_FIRST_OF_TWO}
  off = Add (bias, offset)
  guess = Add (estimate, off)
{_left_open("guess", "limit", "first_open")}{_number("first_open", "first_count")}
{_EXTRA}
  second_guess = Add (guess, extra)
{_left_open("second_guess", "limit_more", "second_open")}
  undecided = And (first_open, second_open)
{_number("undecided", "open_count")}
{_TOTAL}{_SURVIVORS_OF_TWO}
{FINISH_RELU}""",
        "A Gemm and its ReLU: outputs whose estimate of low rank is below their limit become 0, and so do those "
        "of the others whose estimate of a larger rank is. What remains is computed.",
    )


def _bar(opset: int, guess: str, margin: str, result: str, among: str = "") -> str:
    """Text for ``{result}_high``, and ``{result}``: the best of all lower ends, or of those ``among`` the classes."""
    axes, axes_input = ("axes = [-1], ", "") if opset < 18 else ("", ", flat")
    inside = f"{result}_in = Where ({among}, {result}_known, minus_infinity)" if among else ""
    return f"""
  {result}_negative = Less ({margin}, zero)
  {result}_width = Where ({result}_negative, zero, {margin})
  {result}_high = Add ({guess}, {result}_width)
  {result}_low = Sub ({guess}, {result}_width)
  {result}_unknown = IsNaN ({result}_low)
  {result}_known = Where ({result}_unknown, minus_infinity, {result}_low)
  {inside}
  {result} = ReduceMax <{axes}keepdims = 1> ({result}_{"in" if among else "known"}{axes_input})
  {result}_under = Less ({result}_high, {result})
  {result}_not_under = Not ({result}_under)
"""


def _open_rows(mask: str, rows: str, count: str) -> str:
    """Text for the classes left in ``mask``, a row with one class counting as none."""
    return f"""
{counted(mask, rows)}
  {rows}_several = Greater ({rows}, one)
  {rows}_factor = Cast <to = 1> ({rows}_several)
  {rows}_open = Mul ({rows}, {rows}_factor)
  {count} = ReduceSum <keepdims = 0> ({rows}_open)
"""


def _argmax(opset: int) -> Function:
    return Function(
        signature(f"{INPUTS}, shift, margin", "index, survivors", ATTRIBUTES),
        f"""{_ESTIMATE}{_ONE}{SETUP}
  guess = Add (estimate, shift)
{_bar(opset, "guess", "margin", "bar")}
  undecided = Identity (bar_not_under)
{_open_rows("undecided", "row_classes", "open_count")}
{_TOTAL}{_SURVIVORS_OF_ONE}
{finish_index(opset)}""",
        "The index of the largest output of a linear layer: classes whose estimate of low rank plus margin is "
        "below the best estimate minus its margin are out. The others are computed; when every row has one "
        "class left, nothing is.",
    )


def _cascade_argmax(opset: int) -> Function:
    return Function(
        signature(
            f"{INPUTS}, shift, margin, U_more, shift_more, margin_more", "index, survivors", ATTRIBUTES
        ),
        f"""{_ESTIMATE}{_FIRST_OF_TWO}{SETUP}
  guess = Add (estimate, shift)
{_bar(opset, "guess", "margin", "bar")}
{_open_rows("bar_not_under", "first_classes", "first_count")}
{_EXTRA}
  added_to = Add (extra, shift_more)
  second_guess = Add (guess, added_to)
{_bar(opset, "second_guess", "margin_more", "second_bar", "bar_not_under")}
  undecided = And (bar_not_under, second_bar_not_under)
{_open_rows("undecided", "row_classes", "open_count")}
{_TOTAL}{_SURVIVORS_OF_TWO}
{finish_index(opset)}""",
        "The index of the largest output of a linear layer: classes whose estimate of low rank plus margin is "
        "below the best estimate minus its margin are out. Of the others a larger rank is estimated, and the "
        "same is done again. What remains is computed.",
    )


FUNCTIONS: dict[str, Callable[[int], Function]] = {
    "LowRankGemmThreshold": _gemm,
    "LowRankArgMaxThreshold": _argmax,
    "LowRankCascadeGemmThreshold": _cascade_gemm,
    "LowRankCascadeArgMaxThreshold": _cascade_argmax,
}
