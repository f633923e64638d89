"""Function of a decode step's embeddings: the tokens' own, and the next position's.

``token [B, S]``; ``table [tokens, C]``; ``positions [P, C]``; ``past`` a cache whose dimension ``axis [1]`` is the
number of positions before these. ``Y [B, S, C]`` is the sum of the tokens' rows and the one row of ``positions`` that
comes next (learned positions: Gehring et al., Convolutional Sequence to Sequence Learning, 2017, section 3.1); beyond
the last row it is empty, as the Slice of an exported model is.
"""

from __future__ import annotations

from collections.abc import Callable

from exprune_cli.functions.staging import Function, signature


def _embedding(opset: int) -> Function:
    return Function(
        signature("token, table, positions, past, axis", "Y"),
        """
  index_0 = Constant <value: tensor = int64[1] {0}> ()
  one = Constant <value: tensor = int64[1] {1}> ()
  sizes = Shape (past)
  start = Gather <axis = 0> (sizes, axis)
  end = Add (start, one)
  row = Slice (positions, start, end, index_0)
  rows = Gather <axis = 0> (table, token)
  Y = Add (rows, row)""",
        "The sum of the tokens' embeddings and that of the position after those of a cache.",
    )


FUNCTIONS: dict[str, Callable[[int], Function]] = {"TokenEmbedding": _embedding}
