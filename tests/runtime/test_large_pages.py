"""Large weights come to lie in large pages, where the system has them."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from exprune_cli.match import match
from exprune_cli.model import load
from exprune_cli.planning.quantized import plan_quantized
from exprune_cli.planning.relu import dense
from exprune_cli.rewrite import rewrite
from exprune_cli.runtime import runtime_available

from ..models import build

MEGABYTE, ADVISE, COLLAPSE = 2**20, 14, 25
INPUTS, OUTPUTS = 1024, 4096
SCRIPT = """
import sys
import numpy as np
from exprune_cli.runtime import session


def large_pages():
    with open("/proc/self/smaps") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith("AnonHugePages:"))


one = session(sys.argv[1])
before = large_pages()
one.run(None, {"x": np.ones((1, int(sys.argv[2])), np.float32)})
print(large_pages() - before)
"""


def granted() -> bool:
    """Whether the system gives large pages to who asks, at once."""
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not setting.is_file() or "[madvise]" not in setting.read_text():
        return False
    size = 8 * MEGABYTE
    area = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    start = -(-address // (2 * MEGABYTE)) * 2 * MEGABYTE
    area[:] = b"\1" * size
    libc = ctypes.CDLL(None)
    return not any(
        libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(4 * MEGABYTE), advice)
        for advice in (ADVISE, COLLAPSE)
    )


@pytest.fixture(scope="module")
def staged(tmp_path_factory) -> Path:
    text = f"g (float[N, {INPUTS}] x) => (float[N, {OUTPUTS}] y) {{ a = MatMul (x, w) y = Relu (a) }}"
    model = load(build(text, {"w": (INPUTS, OUTPUTS)}))
    sites = match(model).sites
    plans = {site.name: plan_quantized(site, None) or dense(site, "no codes") for site in sites}
    assert all(plan.staged for plan in plans.values())
    path = tmp_path_factory.mktemp("large_pages") / "staged.onnx"
    onnx.save(rewrite(model, sites, plans)[0], path)
    return path


def grown(path: Path, setting: str) -> int:
    """Megabytes in large pages that the first run brings."""
    command = [sys.executable, "-c", SCRIPT, str(path), str(INPUTS)]
    environment = {**os.environ, "EXPRUNE_LARGE_PAGES": setting}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return int(found.stdout) // 1024


@pytest.mark.skipif(not runtime_available(), reason="the native runtime is not built")
@pytest.mark.skipif(not granted(), reason="no large pages on demand here")
def test_weights_are_in_large_pages_unless_that_is_switched_off(staged):
    floats, codes = 4 * INPUTS * OUTPUTS // MEGABYTE, INPUTS * OUTPUTS // MEGABYTE
    # Of each array a page at either end may have to stay as it is.
    assert grown(staged, "1") >= floats + codes - 8
    assert grown(staged, "0") == 0
