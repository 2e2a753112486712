from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

from instil.results.schema import CELLS, INDEX, RESULTS, Results, StudyIndex

ROOT = Path(__file__).parent.parent.parent
PAGES = [
    page
    for folder in (".", "docs/**", "benchmarks", "examples")
    for page in sorted(ROOT.glob(f"{folder}/*.md"))
]
COMMITTED = ROOT / "benchmarks" / "results"


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", list(generator().pages()), ids=lambda path: path.name)
def test_generated_files_are_up_to_date(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == generator().pages()[path], (
        "run: python docs/generate.py"
    )


def anchors(page: Path) -> set[str]:
    """The anchors of the page's headings, as a code host and the site name them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.M)
    headings = (line.lower() for line in re.findall(r"^#+ (.*)$", text, re.M))
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", text):
        if not link.startswith(("http://", "https://")):
            target = (page.parent / link) if link else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), f"{link}#{anchor}"


def test_the_site_lists_every_page() -> None:
    listed = re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    pages = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    assert pages <= set(listed)


def test_every_module_has_one_concept_and_at_most_500_lines() -> None:
    for path in (ROOT / "src").rglob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 500, path
        assert path.stem not in {"utils", "util", "common", "helpers", "misc"}


def test_the_results_schema_is_valid_json() -> None:
    schema = json.loads((ROOT / "src/instil/schemas/results.schema.json").read_text())
    assert schema["properties"]["schema_version"]["const"] == 1


def test_schemas_are_those_of_recipes_and_results() -> None:
    names = {path.name for path in (ROOT / "src/instil/schemas").iterdir()}
    assert names == {"recipe.schema.json", "results.schema.json"}


@pytest.mark.parametrize(
    "study",
    [path.parent for path in sorted(COMMITTED.glob(f"*/{INDEX}"))],
    ids=lambda path: path.name,
)
def test_committed_studies_have_valid_results(study: Path) -> None:
    cells = StudyIndex.read(study / INDEX).cells
    assert {path.parent.name for path in study.glob(f"{CELLS}/*/{RESULTS}")} == set(cells)
    for name in cells:
        results = Results.read(study / CELLS / name / RESULTS)
        assert results.name == name
        assert len(results.methods) == 1
        assert results.method == results.recipe["method"]


def test_the_committed_demo_has_valid_results() -> None:
    record = json.loads((COMMITTED / "demo.json").read_text(encoding="utf-8"))
    results = Results.model_validate(record["results"])
    assert [one.method for one in results.methods] == ["distillation", "zero_shot", "in_context"]
    # What is computed from the rest was measured with it.
    for name in Results.model_computed_fields:
        assert getattr(results, name) == record["results"][name]
