"""exprune: dynamic pruning of ONNX models.

====================================================  ===================================================
:func:`calibrate`, :func:`optimize`, :func:`report`,  the commands, see :mod:`exprune_cli.api`
:func:`merge_calibrations`
:class:`Calibration`, :class:`Optimized`,             what they return, see :mod:`exprune_cli.results`
:class:`Report`, :class:`Certificate`
:func:`session`, :func:`runtime_library`              running models, see :mod:`exprune_cli.runtime`
:class:`ExpruneError`, :class:`UsageError`,           what they raise, see :mod:`exprune_cli.errors`
:class:`GateError`
====================================================  ===================================================

The names are loaded when they are first used, so that ``import exprune_cli`` and ``exprune -h`` cost nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from exprune_cli.api import calibrate as calibrate
    from exprune_cli.api import merge_calibrations as merge_calibrations
    from exprune_cli.api import optimize as optimize
    from exprune_cli.api import report as report
    from exprune_cli.errors import ExpruneError as ExpruneError
    from exprune_cli.errors import GateError as GateError
    from exprune_cli.errors import UsageError as UsageError
    from exprune_cli.results import Calibration as Calibration
    from exprune_cli.results import Certificate as Certificate
    from exprune_cli.results import Optimized as Optimized
    from exprune_cli.results import Report as Report
    from exprune_cli.runtime import runtime_library as runtime_library
    from exprune_cli.runtime import session as session

__version__ = "0.1.0"

_HOMES = {
    "api": ("calibrate", "merge_calibrations", "optimize", "report"),
    "errors": ("ExpruneError", "GateError", "UsageError"),
    "results": ("Calibration", "Certificate", "Optimized", "Report"),
    "runtime": ("runtime_library", "session"),
}
__all__ = [
    "Calibration",
    "Certificate",
    "ExpruneError",
    "GateError",
    "Optimized",
    "Report",
    "UsageError",
    "calibrate",
    "merge_calibrations",
    "optimize",
    "report",
    "runtime_library",
    "session",
]


def __getattr__(name: str) -> object:
    for module, names in _HOMES.items():
        if name in names:
            from importlib import import_module

            return getattr(import_module(f"exprune_cli.{module}"), name)
    raise AttributeError(f"module 'exprune_cli' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
