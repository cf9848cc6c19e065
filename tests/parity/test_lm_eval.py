# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The lm-evaluation-harness with our model beside its own, on tasks that read local files."""

from __future__ import annotations

import json
from pathlib import Path

import family_models
import numpy as np
import pytest
import yaml

pytest.importorskip("torch", reason="torch is not installed")
lm_eval = pytest.importorskip("lm_eval", reason="lm_eval is not installed")
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("default")]

WORDS = "the a river tree house goes comes sees small large and of with king prince".split()
POLICIES = ("policy=full", "policy=streaming,sinks=2,window=200", "policy=snapkv,budget=200")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model, and three tasks."""
    path = tmp_path_factory.mktemp("lm_eval")
    family_models.write_family(path / "model", "qwen2-window", vocab_size=512, sliding_window=4096)
    rng = np.random.default_rng(0)

    def text(count: int) -> str:
        return " ".join(rng.choice(WORDS, count))

    rows = [
        {"question": text(int(rng.integers(3, 30))), "choices": [text(2), text(5)], "gold": i % 2}
        for i in range(7)
    ]
    (path / "rows.json").write_text(json.dumps(rows))
    task = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(path / "rows.json")}},
        "test_split": "test",
    }
    choice = {
        "task": "local_choice", "output_type": "multiple_choice", "doc_to_text": "{{question}}",
        "doc_to_choice": "choices", "doc_to_target": "gold", "metric_list": [{"metric": "acc"}],
    }  # fmt: skip
    rolling = {
        "task": "local_rolling", "output_type": "loglikelihood_rolling", "doc_to_text": "",
        "doc_to_target": "{{question}}", "metric_list": [{"metric": "word_perplexity"}],
    }  # fmt: skip
    answers = {
        "task": "local_answers", "output_type": "generate_until", "doc_to_text": "{{question}}",
        "doc_to_target": "{{choices[0]}}", "metric_list": [{"metric": "exact_match"}],
        "generation_kwargs": {"until": [" o"], "max_gen_toks": 12, "do_sample": False},
    }  # fmt: skip
    (path / "tasks").mkdir()
    for extra in (choice, rolling, answers):
        (path / "tasks" / f"{extra['task']}.yaml").write_text(yaml.safe_dump(task | extra))
    return path


def run(folder: Path, model: str, model_args: str, batch_size: int = 1):
    """What the harness was told by the model, by task: raw log-likelihoods and texts."""
    from lm_eval.tasks import TaskManager

    import jaxkv.integrations.lm_eval  # noqa: F401  registers itself

    tasks = ["local_choice", "local_rolling", "local_answers"]
    report = lm_eval.simple_evaluate(
        model=model, model_args=model_args, tasks=tasks, batch_size=batch_size, log_samples=True,
        task_manager=TaskManager(include_path=str(folder / "tasks"), include_defaults=False),
        bootstrap_iters=0,
    )  # fmt: skip
    assert report is not None
    return {
        name: [sample["resps"] for sample in sorted(rows, key=lambda x: x["doc_id"])]
        for name, rows in report["samples"].items()
    }


@pytest.fixture(scope="module")
def theirs(folder: Path):
    return run(folder, "hf", f"pretrained={folder / 'model'},dtype=float32,device=cpu")


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("policy", POLICIES)
def test_equals_the_harness_own_model(folder: Path, theirs, policy: str, batch_size: int) -> None:
    """With the full cache, and with budgets that are never reached."""
    ours = run(folder, "jaxkv", f"model={folder / 'model'},{policy}", batch_size)
    for mine, other in zip(ours["local_choice"], theirs["local_choice"], strict=True):
        for (a, greedy), (b, their_greedy) in zip(
            (x[0] for x in mine), (x[0] for x in other), strict=True
        ):
            assert abs(float(a) - float(b)) < 1e-3 and str(greedy) == str(their_greedy)
    rolling = zip(ours["local_rolling"], theirs["local_rolling"], strict=True)
    for mine, other in rolling:
        np.testing.assert_allclose(flat(mine), flat(other), atol=2e-3)
    assert ours["local_answers"] == theirs["local_answers"]


def flat(x) -> list[float]:
    while isinstance(x, list | tuple) and isinstance(x[0], list | tuple):
        x = x[0]
    return [float(v) for v in x if not isinstance(v, bool)] if isinstance(x, list | tuple) else [x]


def test_a_small_budget_changes_the_scores(folder: Path, theirs) -> None:
    ours = run(folder, "jaxkv", f"model={folder / 'model'},policy=window,window=4")
    assert ours["local_choice"] != theirs["local_choice"]


@pytest.mark.parametrize(
    ("model_args", "match"),
    [("policy=nothing", "policy 'nothing'"), ("policy=window,sinks=3", "no field 'sinks'")],
)
def test_wrong_arguments_are_named(folder: Path, model_args: str, match: str) -> None:
    from jaxkv import InputError

    with pytest.raises(InputError, match=match):
        run(folder, "jaxkv", f"model={folder / 'model'},{model_args}")
