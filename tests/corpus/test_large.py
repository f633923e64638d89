"""Models over 2 GB, within the memory that they take: ``pytest -m large`` (10 GB of disk, 15 minutes)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.corpus.large_model import commands, run, write_model, write_samples

#: The promise for a model of 2.5 GB.
_GIGABYTES, _PEAK = 2.5, 4e9


@pytest.mark.large
def test_every_command_stays_within_its_memory(tmp_path: Path) -> None:
    write_model(tmp_path / "large.onnx", _GIGABYTES * 1e9)
    write_samples(tmp_path / "samples")
    assert (tmp_path / "large.bin").stat().st_size > 2**31
    for arguments in commands(tmp_path):
        done = run(*arguments)
        assert done.code == 0, f"{done.command}: {done.output}"
        assert done.peak < _PEAK, f"{done.command}: {done.peak / 1e9:.2f} GB"
    assert (tmp_path / "staged.onnx.data").stat().st_size > 2**31
