"""The patterns that exprune stages, one module each, in the order they are tried.

A rule is a module with

- ``NAME``: how reports call it,
- ``match(graph, node)``: the folded :class:`~._linear.Linear`, a :class:`~._linear.Reason` if
  the pattern is there but refused, or None if it is not there,
- ``check(graph, linear)``: a reason to refuse what matched, or None,
- ``site(graph, linear)``: the :class:`~exprune_cli.sites.Site`,
- ``rewrite(graph, site, plan)``: replaces the site's nodes; returns the names of the staged
  node and of its survivors output.

To add one: write the module, put it into :data:`RULES`.
"""

from __future__ import annotations

from exprune_cli.rules import argmax_gemm, relu_conv, relu_gemm, sparse_gemm, top_k_gemm

RULES = (relu_conv, relu_gemm, argmax_gemm, top_k_gemm, sparse_gemm)
