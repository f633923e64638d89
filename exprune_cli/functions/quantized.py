"""Functions of the layers with a quantised estimate. All are lossless: the plain dense layer.

``X [..., G]``, ``codes`` uint8 (laid out for the kernel), ``W`` float32 ``[N, G]``, ``scale``, ``error``, ``norm`` and
``bias`` ``[N]``. Only the kernel reads the codes: ``W`` alone says what the result is.
"""

from __future__ import annotations

from collections.abc import Callable

from exprune_cli.functions.argmax import ATTRIBUTES, argmax
from exprune_cli.functions.staging import RELU, Function, signature

INPUTS = "X, codes, scale, error, norm, W, bias"

#: ``survivors`` ``[1]``: nothing is skipped here. Of ``{result}`` only the shape is read.
_ALL_SURVIVE = """
  result_shape = Shape ({result})
  survivors = ReduceProd (result_shape)
"""

_SCORES = """
  columns = Transpose (W)
  product = MatMul (X, columns)
  scores = Add (product, bias)
"""


def _gemm(opset: int) -> Function:
    return Function(
        signature(f"{INPUTS}, offset, max", "Y, survivors"),
        f"""{_SCORES}
  zero = Constant <value: tensor = float {{0}}> ()
  computed = Add (scores, offset)
{RELU}
{_ALL_SURVIVE.format(result="Y")}""",
        "A Gemm and its ReLU, without loss: the kernel computes only outputs that their 8-bit codes do not "
        "prove to end below 0. Nothing is skipped here: this is the dense layer.",
    )


def _argmax(opset: int) -> Function:
    return Function(
        signature(INPUTS, "index, survivors", ATTRIBUTES),
        f"""{_SCORES}
{argmax("scores", opset)}
{_ALL_SURVIVE.format(result="scores")}""",
        "The index of the largest output of a linear layer, without loss: the kernel computes only classes "
        "that their 8-bit codes do not prove to lose. Nothing is left out here: this is the dense layer.",
    )


def _top_k(opset: int) -> Function:
    return Function(
        signature(f"{INPUTS}, k", "values, indices, survivors"),
        f"""{_SCORES}
  wanted = Constant <value: tensor = int64[1] {{-1}}> ()
  number = Reshape (k, wanted)
  values, indices = TopK <axis = -1> (scores, number)
{_ALL_SURVIVE.format(result="scores")}""",
        "The k largest outputs of a linear layer and their indices, without loss: the kernel computes only "
        "classes that their 8-bit codes do not prove to lose. Nothing is left out here: this is the dense "
        "layer.",
    )


FUNCTIONS: dict[str, Callable[[int], Function]] = {
    "QuantizedGemmBound": _gemm,
    "QuantizedArgMaxBound": _argmax,
    "QuantizedTopKBound": _top_k,
}
