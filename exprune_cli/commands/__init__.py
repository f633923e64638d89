"""The commands of ``exprune``, one module each."""
