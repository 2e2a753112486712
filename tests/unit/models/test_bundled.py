"""The models that come as Python packages."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from instil.errors import OutputError
from instil.models import bundled


def test_a_cache_that_cannot_be_written_is_told_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "model.gguf").touch()
    spec = SimpleNamespace(submodule_search_locations=[str(package)])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
    (tmp_path / "file").touch()
    monkeypatch.setenv("INSTIL_CACHE", str(tmp_path / "file"))
    with pytest.raises(OutputError, match=r"file; got: .*; mend: set .* INSTIL_CACHE"):
        bundled.folder("bundled:smollm2-135m-instruct")
