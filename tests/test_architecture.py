# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The shape of the code: who may import whom, how long a file is, what an import costs."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import jaxkv

ROOT = Path(__file__).parent.parent
HEADER = "# Copyright 2026 The jaxkv authors.\n# SPDX-License-Identifier: Apache-2.0\n"
PACKAGES = ("jaxkv", "pallas_kernels")
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}
FLOORS = {
    name: floor
    for floor, names in enumerate(
        [
            "pallas_kernels",
            "jaxkv.core",
            "jaxkv.cache",
            "jaxkv.attention",
            "jaxkv.layers",
            "jaxkv.policies",
            "jaxkv.models jaxkv.text",
            "jaxkv.alone jaxkv.check jaxkv.checkpoints",
            "jaxkv.generate",
            "jaxkv.cli",
            "jaxkv.train",
            "jaxkv.calibrate jaxkv.convert jaxkv.decode jaxkv.eval jaxkv.plan",
            "jaxkv jaxkv.__main__ jaxkv.bench jaxkv.integrations",
        ]
    )
    for name in names.split()
}
KERNELS_MAY = ("jax", "pallas_kernels")


def part_of(module: str) -> str:
    """The longest entry of `FLOORS` that a module is in."""
    words = module.split(".")
    names = [".".join(words[:size]) for size in range(len(words), 0, -1)]
    found = next(
        (name for name in names if name in FLOORS and (name != "jaxkv" or len(words) == 1)), ""
    )
    assert found, f"{module} has no floor: give it one here"
    return found


def imports(path: Path) -> set[str]:
    """Modules that a file imports, at its top or within a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path} has a relative import"
            if (node.module, [x.name for x in node.names]) == ("jaxkv", ["__version__"]):
                continue  # whoever needs it may tell the version
            # What is imported from a package may itself be a module.
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= (inner & MODULES.keys()) or {node.module}
            if inner - MODULES.keys():
                names.add(node.module)
    return names


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_lower_floors(module: str) -> None:
    mine = part_of(module)
    for name in imports(MODULES[module]):
        if name.split(".")[0] not in PACKAGES or module == "jaxkv":
            continue
        theirs = part_of(name)
        assert theirs != "jaxkv.integrations" or mine == theirs, f"{module} imports {name}"
        if mine == theirs:
            continue
        low = FLOORS[theirs] < FLOORS[mine]
        assert low, f"{module} (floor {FLOORS[mine]}) imports {name}"


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("pallas_kernels")])
def test_kernels_know_jax_and_nothing_else(module: str) -> None:
    outside = {name.split(".")[0] for name in imports(MODULES[module])} - set(KERNELS_MAY)
    assert outside <= set(sys.stdlib_module_names), f"{module} imports {outside}"


def test_models_know_layers_by_their_protocol_only() -> None:
    """All but the plan, which tells what each layer of a model keeps under a policy."""
    for module, path in MODULES.items():
        if module.startswith("jaxkv.models") and module != "jaxkv.models.plan":
            above = ("jaxkv.layers", "jaxkv.policies")
            known = {name for name in imports(path) if name.startswith(above)}
            assert known <= {"jaxkv.layers.base"}, module


# What a policy does to slots it does through `jaxkv.cache`, whatever the form of keys and values.
STORES = re.compile(r"(?<!chunk)\.[kv](?:\[|\.\w)")


def test_policies_do_not_look_into_keys_and_values() -> None:
    for module, path in MODULES.items():
        if module.startswith(("jaxkv.layers", "jaxkv.policies")):
            assert not STORES.findall(path.read_text(encoding="utf-8")), module


# Where programs are made. A jit elsewhere is a program that nobody counts, times or lets go of.
COMPILES = {
    "jaxkv.alone": {"begun"},
    "jaxkv.generate.replay": {"_scored", "_through"},
    "jaxkv.generate.loop": {"lowered"},
    # Layers of one kind are traced once: within a program these are calls, not programs.
    "jaxkv.models.decoder": {"run_layer", "_whole_prompt"},
    "jaxkv.models.layouts": {"begun"},
    "jaxkv.check": {"_prefill", "_step", "_compiled"},
    "jaxkv.calibrate.training": {"make_slope", "make_step"},
    "jaxkv.checkpoints.named": {"_normal"},
    "jaxkv.models.weights": {"multiples"},
    "jaxkv.plan.aot": {"compile_for"},
    "jaxkv.bench.kernels": {"arguments", "one_after_another"},
    "jaxkv.bench.measure": {"copy_bandwidth", "matvec_bandwidth"},
}


def jits(path: Path) -> set[str]:
    """Names of the definitions at a module's top that jit anything, however that is spelled."""
    found = set()
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        words: list[str] = []
        for node in ast.walk(statement):
            words += [node.attr] if isinstance(node, ast.Attribute) else []
            words += [node.id] if isinstance(node, ast.Name) else []
            words += [node.name, node.asname or ""] if isinstance(node, ast.alias) else []
            words += [node.value] if isinstance(node, ast.Constant) and node.value == "jit" else []
        if {"jit", "pjit", "pmap"} & {part for word in words for part in re.split(r"[._]", word)}:
            targets = getattr(statement, "targets", [statement])
            found |= {getattr(target, "name", getattr(target, "id", "")) for target in targets}
    return found


def test_programs_are_made_where_it_says() -> None:
    found = {module: names for module, path in MODULES.items() if (names := jits(path))}
    assert found == COMPILES


@pytest.mark.parametrize(
    "line",
    [
        "f = jax.jit(g)",
        "f = functools.partial(jax.jit, static_argnums=1)(g)",
        "from jax import jit as compiled",
        "@jax.jit\ndef f(): pass",
        "class A:\n  def b(self): return nnx.jit(self.c)",
        "f = getattr(jax, 'jit')(g)",
        "f = eqx.filter_jit(g)",
    ],
)
def test_a_jit_is_seen_however_it_is_spelled(line: str, tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(line)
    assert jits(tmp_path / "module.py")
    (tmp_path / "module.py").write_text('"""What jit does."""\njitter = 1  # jax.jit')
    assert not jits(tmp_path / "module.py")


def test_every_file_has_its_header_and_stays_small() -> None:
    others = [path for name in ("tests", "tools") for path in (ROOT / name).rglob("*.py")]
    files = [*MODULES.values(), *sorted(others)]
    assert len(files) > 80
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert text.startswith(HEADER), f"{path} has no licence header"
        assert text.count("\n") <= 600, f"{path} is longer than 600 lines"


def test_public_names_are_where_they_are_said_to_be() -> None:
    """For type checkers, which read imports, and at run time, which looks them up."""
    found = {}
    for node in ast.walk(ast.parse(MODULES["jaxkv"].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("jaxkv."):
            found |= {alias.name: str(node.module).removeprefix("jaxkv.") for alias in node.names}
    assert found == jaxkv._MODULE_OF
    assert sorted(jaxkv.__all__) == sorted(found) and len(found) <= 48
    assert dir(jaxkv) == sorted([*found, "__version__"])  # and no module
    for name in found:
        assert getattr(jaxkv, name).__name__ == name
    # A package has the name of a function, and is imported after it or before.
    importlib.import_module("jaxkv.generate.sampling")
    assert callable(jaxkv.generate) and not hasattr(jaxkv, "nosuch")


@pytest.mark.parametrize(
    "statement", ["import jaxkv", "import jaxkv.decode.__main__", "import pallas_kernels"]
)
def test_an_import_takes_nothing_heavy(statement: str) -> None:
    heavy = [
        *["jax"] * (statement != "import pallas_kernels"),
        "torch",
        "transformers",
        "orbax",
        "gguf",
        "matplotlib",
        "huggingface_hub",
    ]
    script = f"import sys; {statement}; print([n for n in {heavy} if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
