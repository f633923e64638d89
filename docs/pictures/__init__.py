"""The documentation's pictures, drawn by scripts: the same sources give the same bytes."""

from __future__ import annotations


def draw_all() -> dict[str, str]:
    """SVG by the picture's name, drawn anew; the committed one of the architecture is not among them."""
    from docs.pictures import how

    return how.draw()
