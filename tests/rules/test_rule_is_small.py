"""Adding a rule takes one file, one line in the list, and its test: shown on the documented example."""

from __future__ import annotations

from pathlib import Path

from exprune_cli.rules import ORDER, RULES

ROOT = Path(__file__).parents[2]
NAME = "argmin_gemm"


def test_the_example_is_named_nowhere_but_in_the_list() -> None:
    sources = [*(ROOT / "rules").glob("*.py"), *(ROOT / "runtime").rglob("*.*")]
    sources += [path for path in (ROOT / "exprune_cli").rglob("*.py") if "rules" not in path.parts]
    mentions = {}
    for path in sources:
        if path.suffix in (".py", ".cpp", ".h") and path.stem != NAME:
            lines = path.read_text(encoding="utf-8").splitlines()
            found = [line.strip() for line in lines if NAME in line or NAME.replace("_", "-") in line]
            if found:
                mentions[str(path.relative_to(ROOT))] = found
    assert mentions == {"rules/__init__.py": [f'"{NAME}",']}


def test_the_example_is_one_small_module() -> None:
    lines = (ROOT / "rules" / f"{NAME}.py").read_text(encoding="utf-8").splitlines()
    assert len(lines) < 100
    assert (ROOT / "tests" / "rules" / f"test_{NAME}.py").is_file()


def test_the_list_names_every_rule_once() -> None:
    files = {path.stem for path in (ROOT / "rules").glob("*.py") if not path.stem.startswith("_")}
    assert len(set(ORDER)) == len(ORDER) == len(RULES)
    assert set(ORDER) == files
