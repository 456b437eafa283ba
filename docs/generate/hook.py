"""MkDocs' hook: adds the pages that are written at each build, and those whose text lies beside docs/."""

import re
from pathlib import Path

import settings_page
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
GENERATED = {"reference/settings.md": settings_page.page}
# pages whose text lies elsewhere in the repository
BESIDE = {
    "changelog.md": "CHANGELOG.md",
    "developers.md": "DEVELOPERS.md",
    "contributing.md": "CONTRIBUTING.md",
    "reward_server.md": "examples/reward_server/README.md",
    "tutorials/digits.md": "examples/digits/README.md",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages to those of docs/."""
    for name, write in GENERATED.items():
        files.append(File.generated(config, name, content=write()))
    for name, source in BESIDE.items():
        text = (ROOT / source).read_text()
        files.append(File.generated(config, name, content=from_root(text, name)))
    return files


def on_page_content(html: str, **_: object) -> str:
    """Let long keys in tables break after a dot or an underscore."""
    return re.sub(r"<td><code>[^<]*", lambda cell: re.sub(r"(?<=\w)([._])(?=\w)", r"\1<wbr>", cell[0]), html)


def from_root(text: str, name: str) -> str:
    """A text from beside docs/ as the page `name`: its links to `docs/…` become links between pages."""
    up = "../" * name.count("/")
    return re.sub(r"\]\((?:\.\./)*docs/", f"]({up}", text)
