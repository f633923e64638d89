"""FLOPs against accuracy: ours, the paper's tests tuned by TPE, SnaPEA's modes, and the oracle."""
