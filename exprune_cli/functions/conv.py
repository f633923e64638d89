"""Functions of a Conv (one or two spatial axes, one group) before a ReLU.

``X [B, G, *spatial]``, ``W_head [N, ends[0], *kernel]``, ``W_tail [N, G - ends[0], *kernel]``,
``Y [B, N, *out]``; a reduction group is an input channel with all its taps.
"""

from __future__ import annotations

from collections.abc import Callable

from exprune_cli.functions.gemm import INPUTS, OUTPUTS
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
    signature,
    staged,
    stats,
)

GEOMETRY = ("strides", "dilations", "pads")
CONV = "Conv <strides: ints = @strides, dilations: ints = @dilations, pads: ints = @pads>"

LAYER = Layer(
    x_axis=1,
    product=lambda x, w: f"{CONV} ({x}, {w})",
    w_axis=1,
    setup="""
  weights_shape = Shape (weights)
  weights_rank = Shape (weights_shape)
  spatial_rank = Sub (weights_rank, index_2)
  spatial_ones = ConstantOfShape <value: tensor = int64[1] {1}> (spatial_rank)
  rest = Constant <value: tensor = int64[1] {-1}> ()
  per_output = Concat <axis = 0> (rest, spatial_ones)
  all_weights = Identity (weights)
  head_weights = Identity (W_head)
""",
)

#: Squares of the terms. A channel's term is a sum over taps, so its square needs the channel alone.
SQUARES = f"""
    this_start = Gather (bounds, at)
    this_size = Sub (end, this_start)
    squares_now = Loop (this_size, true, squares) <body = channel
      (int64 step, bool go, float[] so_far) => (bool go_on, float[] squares_more) {{
      go_on = Identity (go)
      position = Add (this_start, step)
      group = Gather (order, position)
      channel_x = Gather <axis = 1> (X, group)
      channel_w = Gather <axis = 1> (weights, position)
      term = {CONV} (channel_x, channel_w)
      term_squared = Mul (term, term)
      squares_more = Add (so_far, term_squared)
    }}>
"""


def _staged(test: Test, doc: str) -> Callable[[int], Function]:
    inputs = f"{INPUTS}, {test.inputs}".rstrip(", ")
    return lambda opset: Function(
        signature(inputs, OUTPUTS, GEOMETRY + test.attributes),
        staged(LAYER, test, COUNT_OUTPUTS, FINISH_RELU),
        doc,
    )


def _bound(opset: int) -> Function:
    return Function(
        signature(f"{INPUTS}, radius, slack", OUTPUTS, GEOMETRY),
        f"""{NATURAL_WEIGHTS}
  zero = Constant <value: tensor = float {{0}}> ()
  convolved = {CONV} (X, weights, bias)
  computed = Add (convolved, offset)
{RELU}
{ALL_SURVIVE.format(result="Y")}""",
        "A Conv and its ReLU, without loss: the kernel skips the rest of an output that a sound bound "
        "shows to end below 0. Nothing is skipped here: this is the dense layer.",
    )


FUNCTIONS: dict[str, Callable[[int], Function]] = {
    "PrefixConvThreshold": _staged(
        THRESHOLD,
        "A Conv and its ReLU, in chunks of input channels: after each chunk, outputs whose scaled partial "
        "sum is below their limit become 0. When all are decided the remaining chunks are skipped.",
    ),
    "PrefixConvStats": _staged(
        stats(SQUARES),
        "A Conv and its ReLU, in chunks of input channels: after each chunk, outputs whose terms have a mean "
        "z standard errors below 0 become 0. When all are decided the remaining chunks are skipped.",
    ),
    "PrefixConvBound": _bound,
}
