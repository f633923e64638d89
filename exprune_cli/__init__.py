"""exprune: dynamic pruning of ONNX models.

The package's names are loaded when they are first used, so that ``import exprune_cli`` and
``exprune -h`` cost nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from exprune_cli.api import calibrate as calibrate
    from exprune_cli.api import optimize as optimize
    from exprune_cli.api import report as report
    from exprune_cli.runtime import runtime_library as runtime_library
    from exprune_cli.runtime import session as session

__version__ = "0.1.0"
__all__ = ["calibrate", "optimize", "report", "runtime_library", "session"]

_HOMES = {
    "calibrate": "exprune_cli.api",
    "optimize": "exprune_cli.api",
    "report": "exprune_cli.api",
    "runtime_library": "exprune_cli.runtime",
    "session": "exprune_cli.runtime",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'exprune_cli' has no attribute {name!r}")
