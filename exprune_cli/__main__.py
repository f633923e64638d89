"""``python -m exprune_cli`` is ``exprune``."""

from __future__ import annotations

import sys

from exprune_cli.cli import main

if __name__ == "__main__":
    sys.exit(main())
