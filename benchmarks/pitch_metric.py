"""A metric for the pitch network of ``torchcrepe_onnx.py``: is the pitch within 50 cents of the tone's?

    exprune optimize torchcrepe.onnx staged.onnx --data frames --max-drop 0.01 \
        --metric benchmarks/pitch_metric.py:within_50_cents
"""

from __future__ import annotations

import numpy as np

#: Cents from one of the network's bins to the next.
CENTS = 20


def within_50_cents(outputs, label, baseline):
    """1 where it is; ``label`` is the tone's bin, which rounds its pitch by up to 10 cents."""
    found = np.argmax(outputs["pitch"], axis=-1)
    return np.abs(found - np.reshape(label, found.shape)) * CENTS + CENTS / 2 <= 50
