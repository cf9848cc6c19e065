# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""What is installed, what it asks for, and what is said where something is missing."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from test_architecture import MODULES, ROOT

import jaxkv
from jaxkv import InputError
from jaxkv.cli.figures import check_picture, save_picture
from jaxkv.core.optional import require
from jaxkv.text import spm

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# What is imported under another name than it is installed by.
INSTALLED_AS = {"yaml": "pyyaml", "orbax": "orbax-checkpoint", "rouge": "rouge"}
# Brought by an extra, and asked for by `require` or in words of the module's own.
OPTIONAL = {
    "matplotlib", "sentencepiece", "transformers", "lm_eval", "jieba", "rouge", "argcomplete",
    "torch", "kvpress", "pandas",
}  # fmt: skip
# There where they are used: a notebook has the one, a program with models of gemma the other.
THEIRS = {"IPython", "gemma"}
ALWAYS_WITH_JAX = {"jaxlib"}


def named(requirements: list[str]) -> set[str]:
    """Names of packages, as they are imported."""
    found = {re.split(r"[\[>=<]", line)[0].lower().replace("_", "-") for line in requirements}
    back = {theirs: ours for ours, theirs in INSTALLED_AS.items()}
    return {back.get(name, name.replace("-", "_")) for name in found}


def test_what_is_imported_is_declared_and_what_is_declared_is_imported() -> None:
    imported = set()
    for path in MODULES.values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            imported |= {name.split(".")[0] for name in names}
    outside = imported - set(sys.stdlib_module_names) - {"jaxkv", "pallas_kernels"}
    declared = named(PROJECT["dependencies"])
    assert outside - OPTIONAL - THEIRS - ALWAYS_WITH_JAX == declared
    assert len(declared) <= 15
    extras = {name for lines in PROJECT["optional-dependencies"].values() for name in named(lines)}
    assert OPTIONAL - {"torch", "kvpress"} <= extras


def test_the_packages_of_the_field_are_declared() -> None:
    everything = named(PROJECT["dependencies"])
    for lines in PROJECT["optional-dependencies"].values():
        everything |= named(lines)
    assert everything >= {
        "jax", "flax", "optax", "orbax", "transformers", "sentencepiece", "chex",
    }  # fmt: skip


def test_what_is_missing_is_said_in_one_line(monkeypatch, tmp_path: Path) -> None:
    for package in ("matplotlib", "sentencepiece"):
        monkeypatch.setitem(sys.modules, package, None)
    plots = r"needs matplotlib: pip install 'jaxkv\[plots\]'"
    with pytest.raises(InputError, match=f"--plot {plots}"):
        check_picture("--plot", str(tmp_path / "a.png"))
    with pytest.raises(InputError, match=f"a.png {plots}"):
        save_picture(str(tmp_path / "a.png"), lambda figure: None)
    with pytest.raises(InputError, match=r"tokenizer.model needs sentencepiece: pip install"):
        spm.backend(tmp_path / "tokenizer.model")
    require("json", "none", "nothing")
    assert list(tmp_path.iterdir()) == []


def test_every_extra_that_is_advised_is_there() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in MODULES.values())
    advised = set(re.findall(r"jaxkv\[([\w,-]+)\]'?\"", text)) | {
        call.args[1].value
        for path in MODULES.values()
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "require"
        if isinstance(call.args[1], ast.Constant)
    }
    assert {"plots", "sentencepiece"} <= advised <= set(PROJECT["optional-dependencies"])


def test_the_citation_is_of_this_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == jaxkv.__version__
    assert cited["license"] == PROJECT["license"]
    assert cited["repository-code"] == PROJECT["urls"]["Homepage"]


def test_forms_of_issues_are_forms() -> None:
    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    assert len(forms) == 3
    for path in forms:
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert path.stem == "config" or {"name", "description", "body"} <= set(form)


def test_type_checkers_are_told() -> None:
    assert (ROOT / "jaxkv" / "py.typed").exists() and (ROOT / "pallas_kernels/py.typed").exists()


def test_the_console_script_is_the_module() -> None:
    assert PROJECT["scripts"] == {"jaxkv": "jaxkv.__main__:run"}
    scripts = importlib.metadata.entry_points(group="console_scripts", name="jaxkv")
    for script in scripts:  # where it is installed
        assert callable(script.load())
