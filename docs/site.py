"""What the site shows beside `docs/`: pages from the rest of the repository, and drawn reports.

mkdocs calls the two functions whose names begin with `on_`. A link of a page means the same in the
repository and on the site: a file of the repository, as seen from the page's own file.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from instil.report import read_study, write_study
from instil.results.schema import INDEX

ROOT = Path(__file__).parent.parent
ADDED = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "benchmarks.md",
    "examples/README.md": "examples/README.md",
    **{
        f"examples/{one.name}": f"examples/{one.name}"
        for one in (ROOT / "examples").glob("*.[pi]*")
    },
    "src/instil/schemas/recipe.schema.json": "schemas/recipe.schema.json",
    "src/instil/schemas/results.schema.json": "schemas/results.schema.json",
}
"""File of the repository -> its place on the site."""
LINK = re.compile(r"(?<=\]\()([^)#\s]+)([^)]*)(?=\))")


def _studies() -> dict[str, str]:
    """Folder of a committed study -> the place of its report on the site."""
    folders = sorted((ROOT / "benchmarks/results").glob(f"*/{INDEX}"))
    return {f"benchmarks/results/{f.parent.name}": f"reports/{f.parent.name}.html" for f in folders}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages, and draws the report of each committed study."""
    for source, place in ADDED.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, place, content=text))
    cache = Path(config.site_dir).parent / ".cache/reports"
    for source, place in _studies().items():
        folder = cache / PurePosixPath(place).stem
        folder.mkdir(parents=True, exist_ok=True)
        write_study(read_study([ROOT / source]), folder, ["html"])
        files.append(File.generated(config, place, abs_src_path=str(folder / "report.html")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links to files of the repository into links to their places on the site."""
    places = ADDED | _studies()
    sources = {place: source for source, place in ADDED.items()}
    here = page.file.src_uri
    folder = posixpath.dirname(sources.get(here, f"docs/{here}"))

    def on_site(match: re.Match[str]) -> str:
        link, rest = match.groups()
        if link.startswith(("http://", "https://")):
            return match.group()
        target = posixpath.normpath(posixpath.join(folder, link))
        place = places.get(target, os.path.relpath(target, "docs"))
        return posixpath.relpath(place, posixpath.dirname(here) or ".") + rest

    return LINK.sub(on_site, markdown)
