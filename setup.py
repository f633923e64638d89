"""What pyproject.toml cannot say: the folder mapping, the native library and the wheel's tag."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from build_backend import runtime_build

#: Written beside the library's place when it could not be built: the reason, for exprune to quote.
MISSING_NOTE = "_runtime_missing.txt"


class BuildRuntime(build_ext):
    """Builds the custom-op library by ``runtime/build.py``; leaves it out where that fails.

    Models run without it, through their function bodies, so a machine without a compiler is no reason to
    fail the installation.
    """

    def get_ext_filename(self, fullname: str) -> str:
        """One name on every platform: it is no Python module, and no Python version is in it."""
        return os.path.join(*fullname.split(".")) + ".so"

    def build_extension(self, ext: Extension) -> None:
        """Builds the only extension that there is."""
        library = Path(self.get_ext_fullpath(ext.name))
        note = library.with_name(MISSING_NOTE)
        library.parent.mkdir(parents=True, exist_ok=True)
        reason = None
        try:
            if os.environ.get("EXPRUNE_BUILD_RUNTIME") == "0":
                reason = "EXPRUNE_BUILD_RUNTIME=0 was set"
            else:
                runtime_build.build(library, version=self.distribution.get_version())
        except OSError as error:
            reason = str(error)
        except subprocess.CalledProcessError as error:
            print(error.stderr, file=sys.stderr)
            reason = f"{error.cmd[0]} failed with exit code {error.returncode}"
        if reason is None:
            note.unlink(missing_ok=True)
            return
        library.unlink(missing_ok=True)
        note.write_text(reason + "\n", encoding="utf-8")
        print(
            f"warning: exprune's native runtime was not built: {reason}. Models run without it, slower; "
            "for it, reinstall with a C++ compiler.",
            file=sys.stderr,
        )

    def copy_extensions_to_source(self) -> None:
        """For an editable installation: puts the library, or the note, beside the sources."""
        package = Path(self.get_finalized_command("build_py").get_package_dir("exprune_cli"))
        for name in (Path(self.get_ext_filename("_runtime")).name, MISSING_NOTE):
            built = Path(self.build_lib) / "exprune_cli" / name
            if built.exists():
                # By renaming: a session may have the old library loaded.
                partial = package / (name + ".partial")
                shutil.copyfile(built, partial)
                os.replace(partial, package / name)
            else:
                (package / name).unlink(missing_ok=True)

    def get_outputs(self) -> list[str]:
        """The files that there are: the library or the note."""
        files = []
        for ext in self.extensions:
            library = Path(self.get_ext_fullpath(ext.name))
            files += [str(f) for f in (library, library.with_name(MISSING_NOTE)) if f.exists()]
        return files


class PlatformWheel(bdist_wheel):
    """A wheel for any Python 3 on this platform: the library does not use Python's ABI."""

    def get_tag(self) -> tuple[str, str, str]:
        """``py3-none-<platform>``."""
        return "py3", "none", super().get_tag()[2]


def packages() -> list[str]:
    """Everything in ``exprune_cli/``, and ``rules/`` as ``exprune_cli.rules``."""
    found = find_packages(str(HERE), include=["exprune_cli", "exprune_cli.*"])
    found = [name for name in found if name.split(".")[1:2] != ["rules"]]
    return sorted([*found, "exprune_cli.rules"])


readme = HERE / "README.md"
setup(
    packages=packages(),
    package_dir={"exprune_cli.rules": "rules"},
    # What MANIFEST.in names is for the source distribution: the wheel's files are those that follow.
    include_package_data=False,
    package_data={"exprune_cli": ["*.json", "py.typed", "templates/*"]},
    exclude_package_data={"exprune_cli": ["*.so", MISSING_NOTE]},
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else "",
    long_description_content_type="text/markdown",
    ext_modules=[Extension("exprune_cli._runtime", [])],
    cmdclass={"build_ext": BuildRuntime, "bdist_wheel": PlatformWheel},
)
