# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""How a model is trained: what can be set, and the optimiser that follows from it."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import jax

from jaxkv.cli.flags import check_dtype
from jaxkv.core.errors import InputError

if TYPE_CHECKING:
    import optax

_BETAS, _EPS = (0.9, 0.95), 1e-8  # Pythia's (arXiv 2304.01373, appendix E)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Recipe:
    """Attributes:
    context: tokens of a sample.
    batch: samples of a step.
    micro_batch: samples that are computed at once, whose gradients are added up; None is all.
    chunk: tokens of a sample that go through the model at once, so that a policy evicts between
      chunks; None is all.
    steps: how many.
    lr: the highest learning rate of AdamW.
    lr_end: the share of it that is left at the end, by a cosine.
    warmup: the share of the steps in which it grows.
    weight_decay: of matrices; norms and biases have none.
    clip: the length that gradients are clipped to.
    dtype: "float32" or "bfloat16", of what is computed; weights and optimiser are float32.
    remat: whether layers are computed again on the way back, and their activations not kept.
    learn_sinks: whether sink logits are learnt, in models that have them.
    validation: the share of the text, its end, that is never trained on.
    seed: of first weights and of the order of samples.
    """

    context: int = 256
    batch: int = 16
    micro_batch: int | None = None
    chunk: int | None = None
    steps: int = 1000
    lr: float = 1e-3
    lr_end: float = 0.1
    warmup: float = 0.01
    weight_decay: float = 0.1
    clip: float = 1.0
    dtype: str = "float32"
    remat: bool = False
    learn_sinks: bool = False
    validation: float = 0.02
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (
            ("context", 2), ("batch", 1), ("micro_batch", 1), ("chunk", 1), ("steps", 1),
            ("seed", 0), ("weight_decay", 0), ("lr_end", 0), ("warmup", 0),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise _wrong(name, value, f"at least {least}")
        for name in ("lr", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise _wrong(name, getattr(self, name), "above 0, and finite")
        if not 0 < self.validation < 1:
            raise _wrong("validation", self.validation, "above 0 and below 1")
        for name in ("lr_end", "warmup", "weight_decay"):
            if getattr(self, name) > 1:
                raise _wrong(name, getattr(self, name), "from 0 to 1")
        for name, whole in (("micro_batch", "batch"), ("chunk", "context")):
            part, size = getattr(self, name), getattr(self, whole)
            if part is not None and size % part:
                raise _wrong(name, part, f"a divisor of {whole}, which is {size}")
        check_dtype("dtype", self.dtype)

    @property
    def at_once(self) -> int:
        """Samples that are computed at once."""
        return self.micro_batch or self.batch


def make_optimizer(recipe: Recipe) -> optax.GradientTransformation:
    """Clipping, and AdamW (arXiv 1711.05101) with a warm-up and a cosine."""
    import optax

    warmup = round(recipe.warmup * recipe.steps)
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=recipe.lr / (warmup + 1),
        peak_value=recipe.lr,
        warmup_steps=warmup,
        decay_steps=max(recipe.steps, warmup + 1),
        end_value=recipe.lr * recipe.lr_end,
    )
    adamw = optax.adamw(schedule, *_BETAS, _EPS, weight_decay=recipe.weight_decay, mask=_matrices)
    return optax.chain(optax.clip_by_global_norm(recipe.clip), adamw)


def _matrices(params: Any) -> Any:
    return jax.tree.map(lambda x: x.ndim > 1, params)


def _wrong(name: str, value: Any, allowed: str) -> InputError:
    return InputError(f"{name.replace('_', '-')} is {value}; it must be {allowed}")
