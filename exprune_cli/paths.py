"""Where output may go: checked before any work is done."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path

from exprune_cli.errors import ExpruneError, UsageError

PathLike = str | os.PathLike[str]


def check_output(output: PathLike, inputs: Mapping[str, PathLike]) -> None:
    """Checks, before any work, that a file can be written and is none of the inputs.

    Args:
        output: The file to write.
        inputs: What it must not be, by its name in the message.

    Raises:
        UsageError: It is one of the inputs, also through links or in other letter case.
        ExpruneError: It cannot be written.
    """
    path = Path(output)
    for what, other in inputs.items():
        if _same_file(path, Path(other)):
            raise UsageError(f"{path}: is {what}; give another name to write to")
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        pass
    except OSError as error:
        raise ExpruneError(f"{path}: cannot be written ({error.strerror})") from None
    else:
        if stat.S_ISDIR(mode):
            raise ExpruneError(f"{path}: cannot be written: it is a folder; give a file's name")
        if not stat.S_ISREG(mode):
            raise ExpruneError(f"{path}: cannot be written: it is no regular file")
    if not path.parent.is_dir():
        raise ExpruneError(f"{path}: cannot be written: there is no folder '{path.parent}'")
    try:
        # The surest question is to do it; the file has no name where the system allows that.
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ExpruneError(
            f"{path}: cannot be written: the folder is not writable ({error.strerror})"
        ) from None


def _same_file(first: Path, second: Path) -> bool:
    with contextlib.suppress(OSError):
        return os.path.samefile(first, second)
    return os.path.normcase(os.path.realpath(first)) == os.path.normcase(os.path.realpath(second))


def external_files(path: PathLike) -> list[Path]:
    """The files beside a model that hold its weights.

    Raises:
        ExpruneError: One is named that must not be read.
    """
    import onnx

    from exprune_cli.external_data import is_external, place_of
    from exprune_cli.structure import all_tensors

    proto = onnx.load(os.fspath(path), load_external_data=False)
    names = {place_of(tensor).location for tensor in all_tensors(proto) if is_external(tensor)}
    return [Path(path).parent / name for name in sorted(names)]
