"""What is imported without the libraries that take seconds."""

from __future__ import annotations

import subprocess
import sys

LIGHT = ("recipe", "results", "tasks")
HEAVY = {"torch", "transformers", "peft", "accelerate", "datasets", "matplotlib", "pyarrow"}
CODE = f"""
import importlib, pkgutil, sys
import instil
assert 'pydantic' not in sys.modules
for package in {LIGHT}:
    known = importlib.import_module(f'instil.{{package}}')
    for module in pkgutil.walk_packages(known.__path__, known.__name__ + '.'):
        importlib.import_module(module.name)
        loaded = {HEAVY} & set(sys.modules)
        assert not loaded, f'{{module.name}} loads {{loaded}}'
import instil.losses, instil.models.tuning, instil.report, instil.cli, instil.pipeline.study
assert not {HEAVY} & set(sys.modules), 'a face loads too much'
"""


def test_recipes_results_and_tasks_need_no_heavy_library() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
