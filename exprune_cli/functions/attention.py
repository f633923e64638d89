"""Functions of attention over a cache: what a decode step computes between its projections.

``X [B, S, 3 C]`` holds the queries, keys and values of ``S`` new positions side by side, ``bias [3 C]`` is added to
them; ``past_key``, ``past_value`` are ``[B, heads, P, size]`` with ``C = heads size``, or, of all layers together,
``[L, B, heads, P, size]`` of which ``layer [1]`` is taken; ``scale [1]`` multiplies the scores. ``Y [B, S, C]``;
``key``, ``value`` are ``[B, heads, P + S, size]``, or ``[1, B, heads, P + S, size]``. No position is masked.
"""

from __future__ import annotations

from collections.abc import Callable

from exprune_cli.functions.staging import Function, signature

_OUTPUTS = "Y, key, value"
_DOC = "Attention of new positions over those of a cache and themselves (Vaswani et al., 2017, section 3.2)"


def _body(past_key: str, past_value: str, key: str, value: str) -> str:
    """The attention, given the names of one layer's cache before and after."""
    return f"""
  index_0 = Constant <value: tensor = int64[1] {{0}}> ()
  index_3 = Constant <value: tensor = int64[1] {{3}}> ()
  rest = Constant <value: tensor = int64[1] {{-1}}> ()
  first = Constant <value: tensor = int64 {{0}}> ()
  second = Constant <value: tensor = int64 {{1}}> ()
  third = Constant <value: tensor = int64 {{2}}> ()
  biased = Add (X, bias)
  as_heads = Concat <axis = 0> (index_0, index_0, index_3, heads, rest)
  apart = Reshape (biased, as_heads)
  query_apart = Gather <axis = 2> (apart, first)
  key_apart = Gather <axis = 2> (apart, second)
  value_apart = Gather <axis = 2> (apart, third)
  query_heads = Transpose <perm = [0, 2, 1, 3]> (query_apart)
  key_heads = Transpose <perm = [0, 2, 1, 3]> (key_apart)
  value_heads = Transpose <perm = [0, 2, 1, 3]> (value_apart)
  {key} = Concat <axis = 2> ({past_key}, key_heads)
  {value} = Concat <axis = 2> ({past_value}, value_heads)
  key_turned = Transpose <perm = [0, 1, 3, 2]> ({key})
  products = MatMul (query_heads, key_turned)
  scores = Mul (products, scale)
  shares = Softmax <axis = -1> (scores)
  mixed = MatMul (shares, {value})
  together = Transpose <perm = [0, 2, 1, 3]> (mixed)
  as_features = Concat <axis = 0> (index_0, index_0, rest)
  Y = Reshape (together, as_features)"""


def _one(opset: int) -> Function:
    return Function(
        signature("X, bias, past_key, past_value, heads, scale", _OUTPUTS),
        _body("past_key", "past_value", "key", "value"),
        f"{_DOC}.",
    )


def _stacked(opset: int) -> Function:
    return Function(
        signature("X, bias, past_key, past_value, heads, scale, layer", _OUTPUTS),
        f"""
  which = Squeeze (layer)
  layer_key = Gather <axis = 0> (past_key, which)
  layer_value = Gather <axis = 0> (past_value, which)
{_body("layer_key", "layer_value", "whole_key", "whole_value")}
  key = Unsqueeze (whole_key, index_0)
  value = Unsqueeze (whole_value, index_0)""",
        f"{_DOC}. The caches of all layers stand in one tensor.",
    )


FUNCTIONS: dict[str, Callable[[int], Function]] = {
    "CachedAttention": _one,
    "StackedCachedAttention": _stacked,
}
