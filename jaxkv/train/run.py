# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""A training from its text to a checkpoint that every command loads, and a report of it."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxkv.checkpoints import orbax
from jaxkv.checkpoints.model import Model
from jaxkv.checkpoints.sources import load, load_tokenizer
from jaxkv.cli.arguments import model_named
from jaxkv.cli.devices import Devices
from jaxkv.core.errors import InputError
from jaxkv.core.machine import where
from jaxkv.core.progress import Progress
from jaxkv.core.settings import flags_named
from jaxkv.layers.base import Policy
from jaxkv.models.config import ModelConfig
from jaxkv.models.decoder import geometry
from jaxkv.models.plan import plan
from jaxkv.models.weights import count, form_of
from jaxkv.policies.registry import describe
from jaxkv.policies.scored import ScoredPolicy
from jaxkv.train.arms import Shape, first_weights, with_sinks
from jaxkv.train.checkpoints import Checkpoints
from jaxkv.train.loop import Rhythm, run
from jaxkv.train.programs import Kept, Programs, noted
from jaxkv.train.recipe import Recipe
from jaxkv.train.step import State, start
from jaxkv.train.text import Samples, Text, files_of, ids_of, split, tokenised

_REPORT = "training.json"  # in the checkpoint


@dataclasses.dataclass(frozen=True)
class Source:
    """What a training begins with: a model, or a shape, an arm and a tokenizer.

    Attributes:
      model: whose weights and tokenizer it begins with; None is random weights of `shape`.
      shape: without a model.
      attention: without a model, one of `arms.ARMS`.
      sinks: learnt tokens before each sample.
      tokenizer: the model whose it is; None trains one.
      vocabulary: the size of that one.
    """

    model: str | None
    shape: Shape
    attention: str
    sinks: int
    tokenizer: str | None
    vocabulary: int


@dataclasses.dataclass(frozen=True)
class Options:
    """Attributes:
    text: files and folders.
    source: what it begins with.
    recipe: how it is trained.
    policy: what the loss goes through.
    rhythm: of judging and keeping states.
    devices: a mesh of several shares out each batch.
    out: the folder of the checkpoint.
    restart: whether a kept state is dropped.
    command: the command line, kept in the report.
    """

    text: tuple[str, ...]
    source: Source
    recipe: Recipe
    policy: Policy
    rhythm: Rhythm
    devices: Devices
    out: str
    restart: bool
    command: str


def train(options: Options, progress: Progress) -> dict[str, Any]:
    """Trains, writes the checkpoint, and reports in plain values.

    Raises:
      InputError: the text is too short, the policy cannot be trained through, a kept state is of
        another run, or the loss is not finite.
    """
    recipe, rhythm = options.recipe, options.rhythm
    model, text = begun(options, progress)
    check_trained_through(options.policy, model.config, recipe)
    if recipe.learn_sinks and not model.config.sink_logits:
        raise InputError("--learn-sinks is for models with sink logits, and this one has none")
    first = model.tokenizer.bos_ids
    samples, held = split(text, first, recipe.context, recipe.validation)
    checkpoints = Checkpoints(
        Path(f"{options.out}.checkpoints"), identity(options, model, text), last=2
    )
    if options.restart:
        checkpoints.remove()
    run_of = Programs(model.config, options.policy, recipe, samples.skip, _mesh(options.devices))
    kept = run(
        run_of.step,
        _nothing(start(model.params, recipe), rhythm),
        lambda index: (*run_of.rows(samples.batch(recipe.seed, index, recipe.batch)), index),
        functools.partial(_judge, run_of, held, rhythm),
        functools.partial(_tell, recipe),
        rhythm, checkpoints, functools.partial(progress, "training"),
    )  # fmt: skip
    rows = run_of.rows(samples.batch(recipe.seed, 0, recipe.batch))
    peak = run_of.updating(rows, kept.state).peak_bytes
    params = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), kept.state.params)
    model = dataclasses.replace(model, params=params, fingerprint=_mark(params), name=options.out)
    report = _report(options, model, text, kept, peak)
    progress("writing", 0, 1)
    orbax.save(options.out, model, {_REPORT: report})
    progress("writing", 1, 1)
    checkpoints.remove()
    return report


def begun(options: Options, progress: Progress) -> tuple[Model, Text]:
    """The model before the first step, in float32, and the text in its tokens."""
    source, files = options.source, files_of(options.text)
    if source.model is not None:
        with model_named(source.model):
            model = load(source.model, "float32", progress)
            if form := form_of(model.params):
                raise InputError(f"the weights are {form}, which have no derivative")
        if options.recipe.context > model.config.max_positions:
            raise InputError(
                f"--context is {options.recipe.context}; the model was trained for "
                f"{model.config.max_positions}"
            )
        text = tokenised(files, model.tokenizer, progress)
        model.check_ids([int(text.tokens.max())], "the text's")
        return model, text
    by = source.vocabulary
    if source.tokenizer is not None:
        with flags_named(None, f"--tokenizer {source.tokenizer}: "):
            by = load_tokenizer(source.tokenizer)
    text = tokenised(files, by, progress)
    with flags_named():
        config = source.shape.config(
            ids_of(text.tokenizer), options.recipe.context, source.attention
        )
    tokenizer = with_sinks(text.tokenizer, source.sinks)
    return Model(config, first_weights(config, options.recipe.seed), tokenizer, "", ""), text


def check_trained_through(policy: Policy, config: ModelConfig, recipe: Recipe) -> None:
    """Refuses a policy that a loss cannot go through, or would not feel.

    Raises:
      InputError: says why.
    """
    name = describe(policy)["name"]
    with flags_named(None, f"--policy {name}: "):
        planned = plan(policy, geometry(config, recipe.at_once, recipe.context, recipe.dtype))
    beside = isinstance(policy, ScoredPolicy) and type(policy).prepare is not ScoredPolicy.prepare
    if beside or planned.repeats:
        raise InputError(
            f"--policy {name} has networks of its own, or reads a prompt twice; nothing is trained "
            "through it"
        )
    if planned.whole_prompt and recipe.chunk in (None, recipe.context):
        raise InputError(
            f"--policy {name} chooses after a prompt, and a sample is one; give --chunk, so that "
            "what follows is predicted from what it kept"
        )


def identity(options: Options, model: Model, text: Text) -> dict[str, Any]:
    """What the steps depend on, by the flags that set it; plain values."""
    source, recipe = options.source, dataclasses.asdict(options.recipe)
    named = {f"--{name.replace('_', '-')}": value for name, value in recipe.items()}
    if source.model is not None:
        begins: dict[str, Any] = {"--model": model.fingerprint}
    else:
        shape = dataclasses.asdict(source.shape)
        begins = {"--attention": source.attention, "--sink-tokens": source.sinks}
        begins |= {f"--{name.replace('_', '-')}": value for name, value in shape.items()}
    policy = describe(options.policy)
    return {
        **begins, "--text": text.key, **named, "--policy": policy,
        "--validate-every": options.rhythm.judged, "--mesh": f"data={options.devices.data}",
    }  # fmt: skip


def _nothing(state: State, rhythm: Rhythm) -> Kept:
    """Before the first step."""
    steps = np.zeros(rhythm.steps, np.float32)
    return Kept(state, steps, steps, np.zeros(-(-rhythm.steps // rhythm.judged), np.float32))


def _judge(run_of: Programs, held: Samples, rhythm: Rhythm, kept: Kept, done: int) -> Kept:
    loss = run_of.loss(kept.state.params, held)
    print(f"step {done}: held out {loss:.4f}", file=sys.stderr, flush=True)
    return dataclasses.replace(kept, held=noted(kept.held, (done - 1) // rhythm.judged, loss))


def _tell(recipe: Recipe, kept: Kept, means: np.ndarray, seconds: float | None) -> str:
    loss, gradient = means
    tokens = recipe.batch * recipe.context
    speed = "" if seconds is None else f"{tokens / seconds:,.0f} tokens/s  "
    return f"{speed}loss {loss:.4f}  gradient {gradient:.3g}"


def _mesh(devices: Devices) -> Mesh | None:
    from jaxkv.models.mesh import mesh

    if not devices.many:
        return None
    with flags_named(None, "--mesh: "):
        return mesh(data=devices.data)


def _mark(params: Any) -> str:
    """A short hash of all weights."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def _report(options: Options, model: Model, text: Text, kept: Kept, peak: int) -> dict[str, Any]:
    recipe, source = options.recipe, options.source
    every, steps = options.rhythm.judged, recipe.steps
    judged = [min((index + 1) * every, steps) for index in range(len(kept.held))]
    tokens = recipe.batch * recipe.context
    # What was compiled in is among the first; a median does not see it.
    usual = float(np.median(np.asarray(kept.seconds)))
    return {
        "model": options.out,
        "begun_with": source.model,
        "attention": source.attention if source.model is None else "its own",
        "parameters": count(model.params),
        "policy": describe(options.policy),
        "tokens": tokens * steps,
        "text_tokens": len(text.tokens),
        "seconds": float(np.sum(kept.seconds)),
        "tokens_per_s": tokens / usual,
        "peak_bytes": peak,
        "loss": float(np.mean(np.asarray(kept.losses)[-max(steps // 20, 1) :])),
        "held_out": float(np.asarray(kept.held)[-1]),
        "settings": identity(options, model, text),
        "fingerprint": model.fingerprint,
        "command": options.command,
        **where(),
        "losses": [float(f"{x:.6g}") for x in np.asarray(kept.losses).tolist()],
        "validation": [
            {"step": step, "loss": float(loss)}
            for step, loss in zip(judged, np.asarray(kept.held), strict=True)
        ],
    }
