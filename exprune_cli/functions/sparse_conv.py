"""Function of a Conv before a ReLU that multiplies no zeros of its input.

``X [B, G, *spatial]``, ``W [G, *kernel, N]`` in the order of the reduction, ``Y [B, N, *out]``. The function
takes the decisions and counts the work that the kernel does, but multiplies zeros as any Conv does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from exprune_cli.functions.conv import BLOCK_LAYER, CONV, GEOMETRY
from exprune_cli.functions.gemm import OUTPUTS
from exprune_cli.functions.staging import COUNT_OUTPUTS, FINISH_RELU, THRESHOLD, Function, signature, staged

#: ``[G, *kernel, N]`` as ``[N, G, *kernel]``, whatever the rank.
WEIGHTS = """
  w_shape = Shape (W)
  w_rank = Shape (w_shape)
  w_last = Sub (w_rank, index_1)
  w_groups = Slice (w_shape, index_0, index_1)
  w_outputs = Slice (w_shape, w_last, w_rank)
  kernel_shape = Slice (w_shape, index_1, w_last)
  w_as_three = Concat <axis = 0> (w_groups, flat, w_outputs)
  w_three = Reshape (W, w_as_three)
  w_swapped = Transpose <perm = [2, 0, 1]> (w_three)
  w_as_conv = Concat <axis = 0> (w_outputs, w_groups, kernel_shape)
  weights = Reshape (w_swapped, w_as_conv)
"""


def _work(name: str, groups: str, size: str, undecided: str) -> str:
    """Text that makes ``{name}``: inputs of these groups that are not 0, times the outputs undecided there."""
    return f"""
    {name}_x = Gather <axis = 1> (X, {groups})
    {name}_zero = Equal ({name}_x, zero)
    {name}_kept = Not ({name}_zero)
    {name}_number = Cast <to = 1> ({name}_kept)
    {name}_shape = Concat <axis = 0> (index_1, {size}, kernel_shape)
    {name}_ones = ConstantOfShape <value: tensor = float[1] {{1}}> ({name}_shape)
    {name}_inputs = {CONV} ({name}_number, {name}_ones)
    {name}_outputs = Cast <to = 1> ({undecided})
    {name}_each = Mul ({name}_inputs, {name}_outputs)
    {name}_whole = Cast <to = 7> ({name}_each)
    {name} = ReduceSum <keepdims = 0> ({name}_whole)
"""


HEAD_WORK = _work("head_work", "head_groups", "head_end", "everything")
NEXT_WORK = f"""
    work_after = Add (at, index_2)
    work_start = Gather (bounds, after)
    work_end = Gather (bounds, work_after)
    work_groups = Slice (order, work_start, work_end)
    work_size = Sub (work_end, work_start)
{_work("work", "work_groups", "work_size", "left")}"""


def _threshold(opset: int) -> Function:
    layer = dataclasses.replace(BLOCK_LAYER, weights=WEIGHTS)
    return Function(
        signature(f"X, order, ends, W, bias, offset, max, {THRESHOLD.inputs}", OUTPUTS, GEOMETRY),
        staged(layer, THRESHOLD, COUNT_OUTPUTS, FINISH_RELU, work=(HEAD_WORK, NEXT_WORK)),
        "A Conv and its ReLU, in chunks of input channels: after each chunk, outputs whose scaled partial "
        "sum is below their limit become 0. When all are decided the remaining chunks are skipped. The kernel "
        "multiplies no zeros of X. `survivors` has what is undecided after each check, and then the "
        "multiply-accumulates of each chunk.",
    )


FUNCTIONS: dict[str, Callable[[int], Function]] = {"SparseConvThreshold": _threshold}
