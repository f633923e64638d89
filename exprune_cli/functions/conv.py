"""Functions of a Conv (one or two spatial axes, one group) before a ReLU.

``X [B, G, *spatial]``, ``W_head [N, ends[0], *kernel]``, ``W_tail [N, G - ends[0], *kernel]``,
``Y [B, N, *out]``; a reduction group is an input channel with all its taps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from exprune_cli.functions.gemm import INPUTS, OUTPUTS
from exprune_cli.functions.staging import (
    ALL_SURVIVE,
    COUNT_OUTPUTS,
    FINISH_RELU,
    NATURAL_WEIGHTS,
    OFFSET,
    RELU,
    THRESHOLD,
    Chunks,
    Function,
    Layer,
    Test,
    in_order,
    signature,
    staged,
    stats,
)

GEOMETRY = ("strides", "dilations", "pads")
CONV = "Conv <strides: ints = @strides, dilations: ints = @dilations, pads: ints = @pads>"

LAYER = Layer(
    chunks=in_order(1),
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


#: ``[G, N, *kernel]`` as ``[N, G, *kernel]``, whatever the rank.
SWAP = """
  w_shape = Shape (W)
  w_groups = Slice (w_shape, swap_0, swap_1)
  w_outputs = Slice (w_shape, swap_1, swap_2)
  w_rank = Shape (w_shape)
  w_kernel = Slice (w_shape, swap_2, w_rank)
  taps_flat = Constant <value: tensor = int64[1] {-1}> ()
  w_as_three = Concat <axis = 0> (w_groups, w_outputs, taps_flat)
  w_three = Reshape (W, w_as_three)
  w_swapped = Transpose <perm = [1, 0, 2]> (w_three)
  w_as_conv = Concat <axis = 0> (w_outputs, w_groups, w_kernel)
  weights = Reshape (w_swapped, w_as_conv)
"""
INDICES = """
  swap_0 = Constant <value: tensor = int64[1] {0}> ()
  swap_1 = Constant <value: tensor = int64[1] {1}> ()
  swap_2 = Constant <value: tensor = int64[1] {2}> ()
"""

HEAD_WEIGHTS = "head_weights = Identity (W_head)"

BLOCK_LAYER = dataclasses.replace(
    LAYER,
    weights=INDICES + SWAP,
    setup=LAYER.setup.replace(
        HEAD_WEIGHTS,
        # Gather keeps the kernel's sizes in shape inference, which a Slice with computed ends loses.
        """first_end = Slice (ends, index_0, index_1)
  range_start = Squeeze (index_0)
  range_end = Squeeze (first_end)
  range_step = Squeeze (index_1)
  head_positions = Range (range_start, range_end, range_step)
  head_weights = Gather <axis = 1> (weights, head_positions)""",
    ),
)

#: ``squared``: of what is expected of each output, as far as positive. ``limit_out``: the limits of blocks.
EXPECTED_SQUARED = """
    scale_row = Gather (scale, at)
    scale_out = Reshape (scale_row, per_output)
    shift_row = Gather (shift, at)
    shift_out = Reshape (shift_row, per_output)
    limit_row = Gather (limit, at)
    limit_out = Reshape (limit_row, limit_shape)
    scaled = Mul (scale_out, partial)
    with_offset = Add (scaled, off)
    estimate = Add (with_offset, shift_out)
    below = Less (estimate, zero)
    above = Where (below, zero, estimate)
    squared = Mul (above, above)
"""

#: Prune a block where the sum over it of ``max(scale * partial + off + shift, 0)^2`` is below its limit.
#: Positions are taken row by row and filled up with zeros to whole blocks; the sum is a product with ones.
BLOCKS = Test(
    inputs="scale, shift, limit, block",
    attributes=(),
    setup=f"""{OFFSET}
  y_rank = Shape (head_shape)
  spatial = Slice (head_shape, index_2, y_rank)
  positions = ReduceProd (spatial)
  keep_two = Constant <value: tensor = int64[2] {{0, 0}}> ()
  as_row = Concat <axis = 0> (keep_two, positions)
  block_less_1 = Sub (block, index_1)
  rounded_up = Add (positions, block_less_1)
  blocks = Div (rounded_up, block)
  filled = Mul (blocks, block)
  unfilled = Sub (filled, positions)
  outer = Slice (head_shape, index_0, index_2)
  fill_shape = Concat <axis = 0> (outer, unfilled)
  fill = ConstantOfShape <value: tensor = float[1] {{0}}> (fill_shape)
  as_blocks = Concat <axis = 0> (keep_two, blocks, block)
  filled_shape = Concat <axis = 0> (keep_two, filled)
  blocks_shape = Concat <axis = 0> (outer, blocks, block)
  ones_shape = Concat <axis = 0> (block, index_1)
  ones = ConstantOfShape <value: tensor = float[1] {{1}}> (ones_shape)
  limit_shape = Concat <axis = 0> (flat, index_1, index_1)
""",
    check=EXPECTED_SQUARED
    + """
    squared_row = Reshape (squared, as_row)
    squared_filled = Concat <axis = 2> (squared_row, fill)
    squared_blocks = Reshape (squared_filled, as_blocks)
    score = MatMul (squared_blocks, ones)
    pruned_block = Less (score, limit_out)
    pruned_blocks = Expand (pruned_block, blocks_shape)
    pruned_filled = Reshape (pruned_blocks, filled_shape)
    pruned_row = Slice (pruned_filled, index_0, positions, index_2)
    pruned = Reshape (pruned_row, head_shape)
""",
)


def _block(opset: int) -> Function:
    return Function(
        signature("X, order, ends, W, bias, offset, max, scale, shift, limit, block", OUTPUTS, GEOMETRY),
        staged(BLOCK_LAYER, BLOCKS, COUNT_OUTPUTS, FINISH_RELU),
        "A Conv and its ReLU, in chunks of input channels: after each chunk, blocks of one output channel x "
        "`block` neighbouring positions become 0 where the sum of the squares of what is expected of them, "
        "as far as positive, is below their limit. When all are decided the remaining chunks are skipped.",
    )


#: ``rank``, ``[B, G, 1, ...]``: each group's place in its image's order, by falling sum of squares times
#: ``weight_energy``, equal ones by index. Summed in double precision, so that the float it is rounded to does not
#: depend on the order of summation; NaN and infinity come first, where all checks see what they spoil.
RANK = """
  x_shape = Shape (X)
  x_rank = Shape (x_shape)
  x_outer = Slice (x_shape, index_0, index_2)
  x_spatial = Slice (x_shape, index_2, x_rank)
  pixels = ReduceProd (x_spatial)
  x_as_rows = Concat <axis = 0> (x_outer, pixels)
  column_shape = Concat <axis = 0> (pixels, index_1)
  column = ConstantOfShape <value: tensor = double[1] {1}> (column_shape)
  x_double = Cast <to = 11> (X)
  x_squared = Mul (x_double, x_double)
  x_rows = Reshape (x_squared, x_as_rows)
  energy_column = MatMul (x_rows, column)
  energy = Reshape (energy_column, x_outer)
  energy_factor = Cast <to = 11> (weight_energy)
  energy_product = Mul (energy, energy_factor)
  energy_score = Cast <to = 1> (energy_product)
  largest = Constant <value: tensor = float {3.4028234663852886e38}> ()
  is_less = Less (energy_score, largest)
  clean_score = Where (is_less, energy_score, largest)
  sorted_scores, image_order = TopK <axis = 1> (clean_score, group_count)
  sorted_groups, flat_rank = TopK <axis = 1, largest = 0> (image_order, group_count)
  rank_shape = Concat <axis = 0> (x_outer, spatial_ones)
  rank = Reshape (flat_rank, rank_shape)
"""


def _ranked(name: str, start: str, end: str) -> str:
    """Text that makes ``{name}_groups``, true for the groups of these ranks."""
    return f"""{name}_early = Less (rank, {start})
    {name}_late = Not ({name}_early)
    {name}_before_end = Less (rank, {end})
    {name}_groups = And ({name}_late, {name}_before_end)"""


#: Images differ in the groups of a chunk: all weights are taken, and of ``X`` the other groups are set to zero.
DYNAMIC_LAYER = dataclasses.replace(
    BLOCK_LAYER,
    chunks=Chunks(
        groups=_ranked,
        x=lambda name: f"Where ({name}_groups, X, zero)",
        weights=lambda weights, start, end: f"Identity ({weights})",
        per_group="weight_energy",
    ),
    setup=LAYER.setup.replace(HEAD_WEIGHTS, "head_weights = Identity (weights)") + RANK,
)


def _dynamic_block(opset: int) -> Function:
    inputs = "X, weight_energy, ends, W, bias, offset, max, scale, shift, limit, block"
    return Function(
        signature(inputs, OUTPUTS, GEOMETRY),
        staged(DYNAMIC_LAYER, BLOCKS, COUNT_OUTPUTS, FINISH_RELU),
        "As PrefixConvBlock, but the input channels of each chunk are chosen per image: by falling energy, the sum of "
        "a channel's squares times `weight_energy`, which is that of its weights. `W` is in the channels' own order.",
    )


def _exact(opset: int) -> Function:
    return Function(
        signature("X, W, bias, offset, max", OUTPUTS, GEOMETRY),
        f"""{INDICES}{SWAP}
  zero = Constant <value: tensor = float {{0}}> ()
  convolved = {CONV} (X, weights, bias)
  computed = Add (convolved, offset)
{RELU}
  survivors = ConstantOfShape <value: tensor = int64[1] {{0}}> (swap_0)""",
        "A Conv and its ReLU, whole: this is the dense layer. The kernel skips the taps that only see padding.",
    )


#: ``[ceil(N / 16), *kernel, G, 16]`` as ``[16 ceil(N / 16), G, *kernel]``: ``rows``, outputs in the panels' order.
PANELS = """
  panel_size = Constant <value: tensor = int64[1] {16}> ()
  taps_flat = Constant <value: tensor = int64[1] {-1}> ()
  after_first = Constant <value: tensor = int64[1] {1}> ()
  w_shape = Shape (W)
  groups_axis = Constant <value: tensor = int64[1] {-2}> ()
  groups_end = Constant <value: tensor = int64[1] {-1}> ()
  w_panels = Slice (w_shape, from_0, after_first)
  w_kernel = Slice (w_shape, after_first, groups_axis)
  w_groups = Slice (w_shape, groups_axis, groups_end)
  w_as_four = Concat <axis = 0> (w_panels, taps_flat, w_groups, panel_size)
  w_four = Reshape (W, w_as_four)
  w_turned = Transpose <perm = [0, 3, 2, 1]> (w_four)
  w_as_conv = Concat <axis = 0> (taps_flat, w_groups, w_kernel)
  rows = Reshape (w_turned, w_as_conv)
  all_outputs = Shape (bias)
"""
FROM_0 = """
  from_0 = Constant <value: tensor = int64[1] {0}> ()
"""

PANEL_LAYER = dataclasses.replace(
    BLOCK_LAYER,
    weights=f"""{FROM_0}{PANELS}
  sorted_channels, slots = TopK <axis = 0, largest = 0> (channels, all_outputs)
  weights = Gather <axis = 0> (rows, slots)
""",
)

#: Prune a position of a panel where the sum over its outputs of ``max(scale * partial + off + shift, 0)^2`` is
#: below its limit. Outputs are taken in the order of ``channels`` and filled up with zeros to whole panels.
PANEL_TEST = Test(
    inputs="scale, shift, limit, channels",
    attributes=(),
    setup=f"""{OFFSET}
  keep_two = Constant <value: tensor = int64[2] {{0, 0}}> ()
  batch = Slice (head_shape, index_0, index_1)
  y_rank = Shape (head_shape)
  spatial = Slice (head_shape, index_2, y_rank)
  positions = ReduceProd (spatial)
  as_outputs = Concat <axis = 0> (keep_two, positions)
  filled = Mul (w_panels, panel_size)
  unfilled = Sub (filled, all_outputs)
  fill_shape = Concat <axis = 0> (batch, unfilled, positions)
  fill = ConstantOfShape <value: tensor = float[1] {{0}}> (fill_shape)
  as_panels = Concat <axis = 0> (batch, w_panels, panel_size, positions)
  as_filled = Concat <axis = 0> (batch, filled, positions)
  ones_shape = Concat <axis = 0> (index_1, panel_size)
  ones = ConstantOfShape <value: tensor = float[1] {{1}}> (ones_shape)
  limit_shape = Concat <axis = 0> (flat, index_1, index_1)
""",
    check=EXPECTED_SQUARED
    + """
    squared_outputs = Reshape (squared, as_outputs)
    squared_ordered = Gather <axis = 1> (squared_outputs, channels)
    squared_filled = Concat <axis = 1> (squared_ordered, fill)
    squared_panels = Reshape (squared_filled, as_panels)
    score = MatMul (ones, squared_panels)
    pruned_panel = Less (score, limit_out)
    pruned_panels = Expand (pruned_panel, as_panels)
    pruned_filled = Reshape (pruned_panels, as_filled)
    pruned_outputs = Gather <axis = 1> (pruned_filled, slots)
    pruned = Reshape (pruned_outputs, head_shape)
""",
)


def _panel(opset: int) -> Function:
    return Function(
        signature("X, order, ends, W, bias, offset, max, scale, shift, limit, channels", OUTPUTS, GEOMETRY),
        staged(PANEL_LAYER, PANEL_TEST, COUNT_OUTPUTS, FINISH_RELU),
        "A Conv and its ReLU, in chunks of input channels: after each chunk, a panel of 16 output channels becomes 0 "
        "at a position where the sum of the squares of what is expected of them, as far as positive, is below the "
        "panel's limit. When all are decided the remaining chunks are skipped.",
    )


def _exact_panel(opset: int) -> Function:
    return Function(
        signature("X, W, bias, offset, max", OUTPUTS, GEOMETRY),
        f"""{FROM_0}{PANELS}
  first_slot = Squeeze (from_0)
  last_slot = Squeeze (all_outputs)
  slot_step = Squeeze (after_first)
  slots = Range (first_slot, last_slot, slot_step)
  weights = Gather <axis = 0> (rows, slots)
  zero = Constant <value: tensor = float {{0}}> ()
  convolved = {CONV} (X, weights, bias)
  computed = Add (convolved, offset)
{RELU}
  survivors = ConstantOfShape <value: tensor = int64[1] {{0}}> (from_0)""",
        "A Conv and its ReLU, whole: this is the dense layer. The kernel takes 16 output channels at a time and skips "
        "the taps that see padding.",
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
    "PrefixConvBlock": _block,
    "DynamicPrefixConvBlock": _dynamic_block,
    "ConvRelu": _exact,
    "PrefixConvPanel": _panel,
    "ConvReluPanel": _exact_panel,
}
