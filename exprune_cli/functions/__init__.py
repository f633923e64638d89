"""Model-local functions: what every ``com.exprune`` op means, in standard ONNX operators.

A staged file carries the function of each op that it uses, so it runs where the native kernels
are not registered: ONNX Runtime inlines the function, and so do ``onnx.inliner`` and
``onnx.reference.ReferenceEvaluator``. Ops whose test can change a result spell their stages out
(:mod:`exprune_cli.functions.staging`); lossless ops are the plain dense layer there.

Letters in the docstrings: ``N`` outputs, ``G`` reduction groups, ``S`` checks, ``C = S + 1`` chunks.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx
from onnx import parser

from exprune_cli.errors import UsageError
from exprune_cli.functions import (
    argmax,
    attention,
    conv,
    gemm,
    low_rank,
    quantized,
    residual_norm,
    sparse,
    sparse_conv,
    token_embedding,
)
from exprune_cli.functions.staging import Function

#: Domain of the ops, and its version.
DOMAIN = "com.exprune"
VERSION = 1

#: Domain of the operators that take the place of others around the sites, see :mod:`exprune_cli.fusion`.
FUSED_DOMAIN = "com.exprune.fused"

#: Oldest opset of a model that can hold the functions (``Clip`` and ``TopK`` in today's form).
MIN_OPSET = 11

_BODIES: dict[str, Callable[[int], Function]] = {
    **gemm.FUNCTIONS,
    **conv.FUNCTIONS,
    **argmax.FUNCTIONS,
    **sparse.FUNCTIONS,
    **quantized.FUNCTIONS,
    **low_rank.FUNCTIONS,
    **sparse_conv.FUNCTIONS,
}

#: Names of all ops, in the order of the contract.
OPS: tuple[str, ...] = tuple(_BODIES)

#: Names of the fused operators, and the oldest opset of a model that can hold their functions.
_FUSED_BODIES = {**attention.FUNCTIONS, **residual_norm.FUNCTIONS, **token_embedding.FUNCTIONS}
FUSED_OPS: tuple[str, ...] = tuple(_FUSED_BODIES)
FUSED_MIN_OPSET = 17


def function_proto(op: str, opset: int) -> onnx.FunctionProto:
    """The function of ``op`` for a model whose default-domain opset is ``opset``.

    The body imports that same opset, because the checker wants one schema per operator and model.

    Args:
        op: One of :data:`OPS`.
        opset: The model's opset, at least :data:`MIN_OPSET`.

    Raises:
        UsageError: There is no op of this name.
        ValueError: The opset is too old.
    """
    if op not in _BODIES:
        raise UsageError(f"no op {DOMAIN}.{op}; there are {', '.join(OPS)}")
    if opset < MIN_OPSET:
        raise ValueError(f"{op} needs opset {MIN_OPSET} or newer, not {opset}")
    return _parsed(DOMAIN, op, _BODIES[op](opset), opset)


def fused_function_proto(op: str, opset: int) -> onnx.FunctionProto:
    """The same for an operator of :data:`FUSED_DOMAIN`.

    Args:
        op: One of :data:`FUSED_OPS`.
        opset: The model's opset, at least :data:`FUSED_MIN_OPSET`.

    Raises:
        ValueError: There is no such operator, or the opset is too old.
    """
    if op not in _FUSED_BODIES or opset < FUSED_MIN_OPSET:
        raise ValueError(f"no op {FUSED_DOMAIN}.{op} for opset {opset}")
    return _parsed(FUSED_DOMAIN, op, _FUSED_BODIES[op](opset), opset)


def _parsed(domain: str, op: str, function: Function, opset: int) -> onnx.FunctionProto:
    head = f'<domain: "{domain}", opset_import: ["": {opset}]>\n{op} {function.signature}'
    proto = parser.parse_function(f"{head}\n{{\n{function.body}\n}}")
    proto.doc_string = function.doc
    return proto
