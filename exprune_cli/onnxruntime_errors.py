"""Errors that ONNX Runtime raises: which they are, and what they say."""

from __future__ import annotations


def from_onnxruntime(error: Exception) -> bool:
    """Whether ONNX Runtime raised it. It has a type of its own for every status code."""
    own = type(error).__module__.startswith("onnxruntime")
    return own or (
        isinstance(error, (RuntimeError, ValueError)) and not isinstance(error, NotImplementedError)
    )


def first_line(error: BaseException) -> str:
    """The first line of an ONNX Runtime message, without its status code's prefix."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return text.split(" : ", 3)[-1] if text.startswith("[ONNXRuntimeError]") else text
