"""What MkDocs calls while it builds: adds the generated pages and pictures to the written ones."""

from __future__ import annotations

import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds a page per reference and an SVG per picture."""
    from docs.generate import messages, pages
    from docs.pictures import draw_all

    made = {f"reference/{name}.md": text for name, text in pages.all_pages().items()}
    made["reference/messages.md"] = messages.page()
    made |= {f"pictures/{name}.svg": text for name, text in draw_all().items()}
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    return files
