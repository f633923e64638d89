"""Function of the linear layer that reads a ReLU's output: ``X [..., K]``, ``W [K, N]``.

The inputs are counted as float32, row by row: a fraction of what summing int64 costs, and exact
below 2^24 inputs. A NaN is not 0; as a bool it is true.
"""

from __future__ import annotations

from collections.abc import Callable

from exprune_cli.functions.staging import Function, signature


def _sparse(opset: int) -> Function:
    # the axes became an input in opset 13
    row_sum = "ReduceSum <axes = [-1]> (used)" if opset < 13 else "ReduceSum (used, last)"
    return Function(
        signature("X, W, bias", "Y, survivors"),
        f"""
  product = MatMul (X, W)
  Y = Add (product, bias)
  last = Constant <value: tensor = int64[1] {{-1}}> ()
  is_used = Cast <to = 9> (X)
  used = Cast <to = 1> (is_used)
  row_float = {row_sum}
  row_used = Cast <to = 7> (row_float)
  used_count = ReduceSum <keepdims = 0> (row_used)
  survivors = Reshape (used_count, last)
""",
        "A linear layer whose input is mostly zeros: the kernel reads only the weight rows of the others. "
        "This is the dense layer; survivors counts the inputs that are not 0.",
    )


FUNCTIONS: dict[str, Callable[[int], Function]] = {"SparseGemm": _sparse}
