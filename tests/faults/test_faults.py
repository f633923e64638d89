"""Whatever goes wrong while a command runs: the input is whole, there is no output or a whole one."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from exprune_cli.calibration import load_calibration
from exprune_cli.model import load
from tests.models import build

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals and limits are POSIX's")

OPTIMIZE = ["optimize", "m.onnx", "out.onnx", "--objective", "flops", "--no-measure"]
CALIBRATE = ["calibrate", "m.onnx", "--data", "data", "-o", "out.calib"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def model_bytes() -> bytes:
    """A model of some megabytes: writing it takes a while."""
    text = "g (float[N, 512] x) => (float[N, 512] y) { h = Gemm (x, w1, b1)\n r = Relu (h)\n y = MatMul (r, w2) }"
    return build(text, {"w1": (512, 2048), "b1": (2048,), "w2": (2048, 512)}).SerializeToString()


@pytest.fixture
def folder(tmp_path: Path, model_bytes: bytes) -> Path:
    (tmp_path / "m.onnx").write_bytes(model_bytes)
    (tmp_path / "data").mkdir()
    x = np.random.default_rng(0).standard_normal((64, 512)).astype(np.float32)
    np.savez(tmp_path / "data" / "a.npz", x=x)
    return tmp_path


@pytest.fixture(autouse=True, scope="module")
def interruptible() -> Iterator[None]:
    """A shell's background job ignores SIGINT, and so would all that it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def start(folder: Path, *arguments: str, **options: object) -> subprocess.Popen[str]:
    """Starts a command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "exprune_cli", *arguments],
        cwd=folder,
        env={**ENVIRONMENT, **options.pop("environment", {})},  # type: ignore[dict-item]
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,  # type: ignore[call-overload]
    )


def finish(process: subprocess.Popen[str], seconds: float = 60) -> tuple[int, str]:
    """Waits for a command's end; returns its exit code and what it said on standard error."""
    _, errors = process.communicate(timeout=seconds)
    return process.returncode, errors


def one_line(errors: str) -> str:
    """The only line that a failure may print."""
    errors = errors.removeprefix("\n")  # click ends the terminal's line with ^C
    assert errors.startswith("exprune: error: ") and errors.count("\n") == 1, errors
    assert "internal" not in errors
    return errors


def names(folder: Path) -> set[str]:
    """Names in a folder, hidden ones too."""
    return set(os.listdir(folder))


BEFORE = {"m.onnx", "data"}


# --- killed --------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [OPTIMIZE, CALIBRATE], ids=["optimize", "calibrate"])
def test_killed_anywhere(folder: Path, model_bytes: bytes, command: list[str]) -> None:
    begin = time.monotonic()
    assert finish(start(folder, *command))[0] == 0
    whole = time.monotonic() - begin
    (output,) = names(folder) - BEFORE
    expected = (folder / output).read_bytes()
    chance = random.Random(0)
    for turn in range(3):
        if turn % 2:
            (folder / output).unlink(missing_ok=True)
        # Most of the time goes into starting Python; writing is at the end.
        delay = chance.uniform(0.3, 1.05) * whole
        process = start(folder, *command)
        time.sleep(delay)
        process.kill()
        process.communicate()
        assert (folder / "m.onnx").read_bytes() == model_bytes
        if (folder / output).exists():
            assert (folder / output).read_bytes() == expected
    # A temporary file that was left behind is in nobody's way.
    assert finish(start(folder, *command))[0] == 0
    assert (folder / output).read_bytes() == expected


KILL_AT = """
import os, signal, sys
calls = 0
def stop(name, call):
    def wrapped(*arguments, **options):
        global calls
        calls += 1
        if calls == int(os.environ["KILL_AT"]):
            os.kill(os.getpid(), signal.Signals[os.environ["KILL_WITH"]])
        return call(*arguments, **options)
    return wrapped
for name in ("fsync", "chmod", "replace", "unlink"):
    setattr(os, name, stop(name, getattr(os, name)))
from exprune_cli.cli import main
sys.exit(main())
"""


@pytest.mark.parametrize(
    ("signal_name", "point"),
    [
        *(("SIGKILL", point) for point in (1, 2, 3, 4)),
        ("SIGINT", 1),
        ("SIGINT", 3),
        ("SIGTERM", 2),
        ("SIGTERM", 4),
    ],
)
def test_ended_at_every_step_of_writing(
    folder: Path, model_bytes: bytes, signal_name: str, point: int
) -> None:
    """1: before the flush to disk, 2: before the permissions, 3: before the rename, 4: after it."""
    command = [sys.executable, "-c", KILL_AT, *OPTIMIZE]
    settings = {"KILL_AT": str(point), "KILL_WITH": signal_name}
    done = subprocess.run(
        command, cwd=folder, env={**ENVIRONMENT, **settings}, capture_output=True, text=True, check=False
    )
    assert (folder / "m.onnx").read_bytes() == model_bytes
    if point < 4:
        assert not (folder / "out.onnx").exists()
    else:
        assert load(folder / "out.onnx").proto.graph.node
    if signal_name == "SIGKILL":
        assert done.returncode == -signal.SIGKILL
        return
    assert done.returncode == {"SIGINT": 130, "SIGTERM": 143}[signal_name], done.stderr
    one_line(done.stderr)
    assert names(folder) - BEFORE <= ({"out.onnx"} if point == 4 else set())


# --- signals -------------------------------------------------------------------------------------


def endless(folder: Path) -> None:
    """Puts a model into the folder that loops for ever inside ONNX Runtime."""
    text = """<ir_version: 8, opset_import: ["" : 17]>
      g (float[N, 512] x) => (float[N, 4] y) {
      n = Constant <value_int = 9000000000000000000> ()
      t = Constant <value_int = 1> ()
      c = Cast <to = 9> (t)
      z = Loop (n, c, x) <body = b (int64 i, bool ci, float[N, 512] v) => (bool co, float[N, 512] w)
        { co = Identity (ci) w = Sin (v) }>
      h = MatMul (z, w2)
      y = Relu (h) }"""
    proto = parser.parse_model(text)
    proto.graph.initializer.append(numpy_helper.from_array(np.ones((512, 4), np.float32), "w2"))
    (folder / "m.onnx").write_bytes(proto.SerializeToString())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("terminal", [False, True], ids=["quiet", "progress shown"])
def test_signals_end_what_runs_in_native_code(
    folder: Path, number: signal.Signals, code: int, terminal: bool, request: pytest.FixtureRequest
) -> None:
    endless(folder)
    if terminal:
        import pty

        leader, follower = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-m", "exprune_cli", *CALIBRATE],
            cwd=folder,
            env={**ENVIRONMENT, "TERM": "xterm"},
            stdout=subprocess.DEVNULL,
            stderr=follower,
        )
        os.close(follower)
    else:
        process = start(folder, *CALIBRATE)  # type: ignore[assignment]
    request.addfinalizer(process.kill)  # it would run for ever
    time.sleep(4)
    assert process.poll() is None
    begin = time.monotonic()
    process.send_signal(number)
    if terminal:
        said = b""
        while True:
            try:
                piece = os.read(leader, 4096)
            except OSError:  # the other end is closed
                break
            if not piece:
                break
            said += piece
        os.close(leader)
        assert process.wait(30) == code
        assert b"Traceback" not in said and b"exprune: error: " in said
    else:
        ended, errors = finish(process)
        assert ended == code
        one_line(errors)
    assert time.monotonic() - begin < 10
    assert names(folder) == BEFORE


# --- disk, memory, permissions -------------------------------------------------------------------


@pytest.fixture
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of 64 kB."""
    place = folder / "small"
    place.mkdir()
    mounted = (
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], capture_output=True, check=False
        )
        if shutil.which("mount")
        else None
    )
    if mounted is None or mounted.returncode:
        pytest.skip("a small file system cannot be mounted here (needs root)")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_disk_full(folder: Path, small_disk: Path) -> None:
    for arguments in (
        ["optimize", "m.onnx", "small/o.onnx", *OPTIMIZE[3:]],
        [*CALIBRATE[:-1], "small/o.calib"],
    ):
        code, errors = finish(start(folder, *arguments))
        assert code == 3 and "cannot be written (No space left on device)" in one_line(errors)
        assert names(small_disk) == set()


def test_file_size_limit(folder: Path) -> None:
    import resource

    limit = 2**20
    process = start(
        folder, *OPTIMIZE, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    )
    code, errors = finish(process)
    assert code == 3 and "cannot be written" in one_line(errors)
    assert names(folder) == BEFORE


def test_disk_full_keeps_the_older_output(folder: Path) -> None:
    import resource

    (folder / "out.onnx").write_bytes(b"older")
    process = start(
        folder, *OPTIMIZE, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
    )
    assert finish(process)[0] == 3
    assert (folder / "out.onnx").read_bytes() == b"older"


def test_folder_that_only_others_may_write(folder: Path) -> None:
    if os.getuid():
        (folder / "locked").mkdir(mode=0o555)
        options: dict[str, object] = {}
    else:
        # Root may write everywhere: the child becomes nobody.
        for path in [*folder.parents, folder]:
            if str(path).startswith("/tmp/") and path.owner() == "root":
                path.chmod(path.stat().st_mode | 0o055)
        (folder / "locked").mkdir(mode=0o755)
        options = {"user": 65534, "group": 65534, "extra_groups": []}
        command = [sys.executable, "-c", "import exprune_cli.cli"]
        try:
            subprocess.run(command, env=ENVIRONMENT, capture_output=True, check=True, **options)  # type: ignore[call-overload]
        except (PermissionError, subprocess.CalledProcessError):
            pytest.skip("the user 'nobody' cannot read this installation")
    code, errors = finish(start(folder, "optimize", "m.onnx", "locked/o.onnx", **options))
    assert code == 3 and "locked/o.onnx: cannot be written" in one_line(errors)
    assert names(folder / "locked") == set()


def test_read_only_file_system(folder: Path) -> None:
    place = folder / "frozen"
    place.mkdir()
    commands = [["mount", "--bind", str(place), str(place)], ["mount", "-o", "remount,ro,bind", str(place)]]
    done = (
        [subprocess.run(c, capture_output=True, check=False) for c in commands]
        if shutil.which("mount")
        else []
    )
    if not done or done[0].returncode:
        pytest.skip("a folder cannot be mounted read-only here (needs root)")
    try:
        if done[1].returncode:
            pytest.skip("a mount cannot be made read-only here")
        code, errors = finish(start(folder, "optimize", "m.onnx", "frozen/o.onnx"))
        assert code == 3 and "frozen/o.onnx: cannot be written" in one_line(errors)
        assert "Read-only file system" in errors
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize(
    ("command", "megabytes"),
    [(OPTIMIZE, 500), (OPTIMIZE, 800), (CALIBRATE, 600)],
    ids=["read", "plan", "calibrate"],
)
def test_no_memory(folder: Path, command: list[str], megabytes: int) -> None:
    import resource

    text = "g (float[N, 2048] x) => (float[N, 64] y) { h = Gemm (x, w1, b1)\n r = Relu (h)\n y = MatMul (r, w2) }"
    proto = build(text, {"w1": np.ones((2048, 16384), np.float32), "b1": (16384,), "w2": (16384, 64)})
    onnx.save(proto, folder / "m.onnx")
    np.savez(folder / "data" / "a.npz", x=np.ones((64, 2048), np.float32))
    size = megabytes * 2**20
    process = start(folder, *command, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (size, size)))
    code, errors = finish(process)
    if code:
        assert code == 3
        assert "memory" in one_line(errors) or "llocat" in errors
        assert names(folder) == BEFORE
    else:
        assert megabytes > 500  # where so little is enough


# --- places --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["folder", "device", "pipe", "link to the input", "same file"])
def test_output_that_is_no_place(folder: Path, model_bytes: bytes, kind: str) -> None:
    place = folder / "out.onnx"
    name = "out.onnx"
    if kind == "folder":
        place.mkdir()
    elif kind == "device":
        name = "/dev/full"
    elif kind == "pipe":
        os.mkfifo(place)
    elif kind == "link to the input":
        place.symlink_to("m.onnx")
    else:
        os.link(folder / "m.onnx", place)
    before = names(folder)
    code, errors = finish(start(folder, "optimize", "m.onnx", name))
    assert code == (2 if kind in ("link to the input", "same file") else 3)
    one_line(errors)
    assert names(folder) == before
    assert (folder / "m.onnx").read_bytes() == model_bytes


@pytest.mark.parametrize("same", [False, True], ids=["eight outputs", "one output"])
def test_eight_at_once_in_one_folder(folder: Path, same: bool) -> None:
    outputs = ["out.onnx"] * 8 if same else [f"out{i}.onnx" for i in range(8)]
    processes = [start(folder, "optimize", "m.onnx", name, *OPTIMIZE[3:]) for name in outputs]
    assert [finish(process, 240)[0] for process in processes] == [0] * 8
    assert names(folder) == BEFORE | set(outputs)
    contents = {(folder / name).read_bytes() for name in outputs}
    assert len(contents) == 1
    assert load(folder / outputs[0]).proto.functions


def test_calibration_is_whole(folder: Path) -> None:
    assert finish(start(folder, *CALIBRATE))[0] == 0
    assert load_calibration(folder / "out.calib").samples == 64
