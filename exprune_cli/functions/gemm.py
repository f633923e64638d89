"""Functions of a Gemm or MatMul before a ReLU.

``X [..., G]``, ``W_head [N, ends[0]]``, ``W_tail [N, G - ends[0]]``, ``Y [..., N]``.
"""

from __future__ import annotations

from collections.abc import Callable

from exprune_cli.functions.staging import (
    ALL_SURVIVE,
    COUNT_OUTPUTS,
    FINISH_RELU,
    NATURAL_WEIGHTS,
    RELU,
    THRESHOLD,
    Function,
    Layer,
    Test,
    chunk,
    in_order,
    signature,
    staged,
    stats,
)

INPUTS = "X, order, ends, W_head, W_tail, bias, offset, max"
OUTPUTS = "Y, survivors"

LAYER = Layer(
    chunks=in_order(-1),
    product=lambda x, w: f"MatMul ({x}, {w})",
    w_axis=0,
    setup="""
  per_output = Constant <value: tensor = int64[1] {-1}> ()
  all_weights = Transpose (weights)
  head_weights = Transpose (W_head)
""",
)

#: Squares of the terms, for all outputs at once: (w x)^2 = w^2 x^2.
SQUARES = f"""{chunk(LAYER, "this", "at", "after")}
    x_squared = Mul (this_x, this_x)
    w_squared = Mul (this_w, this_w)
    new_squares = MatMul (x_squared, w_squared)
    squares_now = Add (squares, new_squares)
"""


def _staged(test: Test, doc: str) -> Callable[[int], Function]:
    inputs = f"{INPUTS}, {test.inputs}".rstrip(", ")
    return lambda opset: Function(
        signature(inputs, OUTPUTS, test.attributes),
        staged(LAYER, test, COUNT_OUTPUTS, FINISH_RELU),
        doc,
    )


def _bound(opset: int) -> Function:
    return Function(
        signature(f"{INPUTS}, radius, slack", OUTPUTS),
        f"""{NATURAL_WEIGHTS}
  zero = Constant <value: tensor = float {{0}}> ()
  columns = Transpose (weights)
  product = MatMul (X, columns)
  biased = Add (product, bias)
  computed = Add (biased, offset)
{RELU}
{ALL_SURVIVE.format(result="Y")}""",
        "A Gemm and its ReLU, without loss: the kernel skips the rest of an output that a sound bound "
        "shows to end below 0. Nothing is skipped here: this is the dense layer.",
    )


FUNCTIONS: dict[str, Callable[[int], Function]] = {
    "PrefixGemmThreshold": _staged(
        THRESHOLD,
        "A Gemm and its ReLU, in chunks of input features: after each chunk, outputs whose scaled partial "
        "sum is below their limit become 0. When all are decided the remaining chunks are skipped.",
    ),
    "PrefixGemmStats": _staged(
        stats(SQUARES),
        "A Gemm and its ReLU, in chunks of input features: after each chunk, outputs whose terms have a mean "
        "z standard errors below 0 become 0. When all are decided the remaining chunks are skipped.",
    ),
    "PrefixGemmBound": _bound,
}
