"""How much memory there is, for refusing what cannot fit before any of it is taken."""

from __future__ import annotations

import contextlib
from pathlib import Path

from exprune_cli.errors import ExpruneError

_CGROUP = Path("/sys/fs/cgroup")


def available_bytes() -> int | None:
    """Bytes that this process can still take: the system's, its control group's, its own limit; None if unknown."""
    found = [size for size in (_system(), _control_group(), _own_limit()) if size is not None]
    return min(found) if found else None


def check_fits(size: int, where: str) -> None:
    """Checks that so many bytes, which a file claims, can be in memory.

    Raises:
        ExpruneError: They cannot.
    """
    limit = available_bytes()
    if limit is not None and size > limit:
        raise ExpruneError(
            f"{where}: takes {size / 1e9:,.1f} GB of memory, {max(limit, 0) / 1e9:,.1f} GB are free"
        )


def limit_memory() -> None:
    """Limits this process to the memory that is free now.

    An allocation that a crafted model asks for then fails and is reported, where the system would
    otherwise grant it and end processes at random later.
    """
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        free = available_bytes()
        if free is None:
            return
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        limit = free + own_data()
        if hard != resource.RLIM_INFINITY:
            limit = min(limit, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def memory_limit() -> int | None:
    """The bytes that :func:`limit_memory` or the user have limited this process to; None if nobody has."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_DATA)
        return None if soft == resource.RLIM_INFINITY else soft
    return None


def own_data() -> int:
    """The bytes that count for :func:`memory_limit`; 0 where that is unknown."""
    return _own_use("VmData") or 0


def _system() -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _control_group() -> int | None:
    with contextlib.suppress(OSError, ValueError):
        limit = int((_CGROUP / "memory.max").read_text())  # "max" without a limit
        return limit - int((_CGROUP / "memory.current").read_text())
    return None


def _own_limit() -> int | None:
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        limits = []
        for kind, field in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
            soft, _ = resource.getrlimit(kind)
            used = _own_use(field)
            if soft != resource.RLIM_INFINITY and used is not None:
                limits.append(soft - used)
        return min(limits) if limits else None
    return None


def _own_use(field: str) -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    return None
