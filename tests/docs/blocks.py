"""The commands and code of the documentation, and the folder that they are run in.

Every ``bash`` and ``python`` block of a page is run, in order, in one sandbox. A comment before a block changes that:

- ``<!-- block: long -->``: its options are checked; it is run only with ``-m docs_full``,
- ``<!-- block: fails N -->``: it has to end with exit code N,
- ``<!-- block: needs MODULE -->``: it is run only where this Python module is installed.

The README's blocks ``demo`` and ``tests`` are long too; the latter would run the tests from the tests.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

import click
import numpy as np
import onnx
from onnx import helper, numpy_helper

from exprune_cli.cli import exprune

ROOT = Path(__file__).parents[2]
_CLASSES = 32
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
_BLOCK = re.compile(
    r"(?:<!-- (?P<mark>[^>]*?) -->\n)?^(?P<indent> *)```(?P<language>\w+)\n(?P<text>.*?)^ *```$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: The file, relative to the repository.
        line: Where it begins.
        language: As it is fenced.
        text: What it holds.
        long: Whether it is run only when asked for.
        never: Whether it is never run from here.
        code: The exit code that it has to end with.
        needs: The Python module without which it is not run.
    """

    page: str
    line: int
    language: str
    text: str
    long: bool
    never: bool
    code: int
    needs: str | None

    @property
    def where(self) -> str:
        """The page and the line."""
        return f"{self.page}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    """All fenced blocks of a page, in order."""
    content = page.read_text(encoding="utf-8")
    for found in _BLOCK.finditer(content):
        mark = (found["mark"] or "").removeprefix("block: ")
        fails, needs = re.fullmatch(r"fails (\d+)", mark), re.fullmatch(r"needs (\w+)", mark)
        yield Block(
            page=str(page.relative_to(ROOT)),
            line=content.count("\n", 0, found.start("language")) + 1,
            language=found["language"],
            text=dedent(found["text"]),
            long=mark in ("long", "demo", "tests"),
            never="pytest" in found["text"],
            code=int(fails[1]) if fails else 0,
            needs=needs[1] if needs else None,
        )


def commands(text: str) -> Iterator[list[str]]:
    """The words of every call of ``exprune`` in a text: a block, a workflow file, a line."""
    for line in text.replace("\\\n", " ").splitlines():
        for part in re.split(r"&&|\|\||[|;]", line):
            found = re.search(r"(?:^|[\s/])exprune +(?!:)(.*)", part)
            if found and not part.lstrip().startswith("#"):
                yield ["exprune", *shlex.split(found[1], comments=True)]


def problem(words: list[str]) -> str | None:
    """What is wrong with a command's name and options, without running it."""
    if len(words) < 2 or words[1].startswith("-"):
        return None
    command = exprune.commands.get(words[1])
    if command is None:
        return f"there is no command {words[1]}"
    known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
    known |= {"-h", "--help"}
    for word in words[2:]:
        if word.startswith("-") and word.partition("=")[0] not in known:
            return f"exprune {words[1]} has no option {word}"
    arguments = [p for p in command.params if isinstance(p, click.Argument) and p.required]
    return None if len(words) - 2 >= len(arguments) else f"exprune {words[1]} lacks an argument"


def fill_sandbox(folder: Path) -> None:
    """Adds to a folder what the pages speak of: a model, samples, and the repository's folders."""
    for name in ("sample_models", "examples", "rules", "exprune_cli", "runtime", "mkdocs.yml"):
        if not (folder / name).exists():
            (folder / name).symlink_to(ROOT / name)
    # There are blocks that write into it.
    shutil.copytree(ROOT / "docs", folder / "docs", dirs_exist_ok=True)
    kinds = np.random.default_rng(9).standard_normal((_CLASSES, 1, 32, 32)).astype(np.float32)
    model = _model(kinds)
    onnx.save(model, folder / "model.onnx")
    for name, first, parts in (("samples", 0, 4), ("held_out_samples", 4, 2)):
        (folder / name).mkdir()
        for part in range(parts):
            rng = np.random.default_rng(first + part)
            label = rng.integers(_CLASSES, size=250)
            images = kinds[label] + rng.standard_normal((250, 1, 32, 32)).astype(np.float32)
            np.savez(folder / name / f"part{part}.npz", image=images, label=label)


def _model(kinds: np.ndarray) -> onnx.ModelProto:
    """Two hidden layers of which few outputs are alive, and scores ``logits`` of the kinds of images."""
    rng = np.random.default_rng(0)
    nodes = [helper.make_node("Flatten", ["image"], ["h0"])]
    arrays: dict[str, np.ndarray] = {}
    values = kinds.reshape(_CLASSES, -1)
    for index in range(2):
        width = values.shape[1]
        weight = (rng.standard_normal((192, width)) / np.sqrt(width)).astype(np.float32)
        values = np.maximum(values @ weight.T - 0.3, 0)
        arrays |= {f"w{index}": weight, f"b{index}": np.full(192, -0.3, np.float32)}
        inputs = [f"h{index}", f"w{index}", f"b{index}"]
        nodes.append(helper.make_node("Gemm", inputs, [f"s{index}"], f"hidden{index + 1}", transB=1))
        nodes.append(helper.make_node("Relu", [f"s{index}"], [f"h{index + 1}"]))
    arrays["w2"] = values / np.linalg.norm(values, axis=1, keepdims=True)
    nodes.append(helper.make_node("Gemm", ["h2", "w2"], ["logits"], "head", transB=1))
    weights = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    images = [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["N", 1, 32, 32])]
    scores = [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["N", _CLASSES])]
    graph = helper.make_graph(nodes, "documented", images, scores, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
