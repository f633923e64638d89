"""The patterns that exprune stages, one module each, in the order they are tried.

A rule is a module with

- ``NAME``: how reports call it,
- ``match(graph, node)``: the folded :class:`~._linear.Linear`, a :class:`~._linear.Reason` if
  the pattern is there but refused, or None if it is not there,
- ``check(graph, linear)``: a reason to refuse what matched, or None,
- ``site(graph, linear)``: the :class:`~exprune_cli.sites.Site`,
- ``rewrite(graph, site, plan)``: replaces the site's nodes; returns the names of the staged
  node and of its survivors output.

To add one: write the module, put its name into :data:`ORDER`.
"""

from __future__ import annotations

from importlib import import_module

#: Where several rules fit a linear op, the first of them takes it.
ORDER = (
    "relu_conv",
    "relu_gemm",
    "argmax_gemm",
    "argmin_gemm",
    "top_k_gemm",
    "sparse_gemm",
)

RULES = tuple(import_module(f"{__name__}.{name}") for name in ORDER)
