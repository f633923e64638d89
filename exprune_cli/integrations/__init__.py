"""Passes of exprune for other tools; each module needs the tool it is for."""
