"""Function of a residual sum and its normalisation.

``X``, ``Y`` ``[..., C]``; ``bias`` (of the layer that made ``Y``), ``scale``, ``shift`` ``[C]``. ``normed`` is the
LayerNormalization of ``sum``, ``X + (Y + bias)``, over its last axis (Ba, Kiros and Hinton, Layer Normalization, 2016).
"""

from __future__ import annotations

from collections.abc import Callable

from exprune_cli.functions.staging import Function, signature


def _norm(opset: int) -> Function:
    return Function(
        signature("X, Y, bias, scale, shift", "normed, sum", ("epsilon",)),
        """
  biased = Add (Y, bias)
  sum = Add (X, biased)
  normed = LayerNormalization <axis = -1, epsilon: float = @epsilon> (sum, scale, shift)""",
        "A residual sum, with the bias of the layer that made one side, and its LayerNormalization.",
    )


FUNCTIONS: dict[str, Callable[[int], Function]] = {"ResidualNorm": _norm}
