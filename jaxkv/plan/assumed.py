# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Policies that go by what was calibrated for a model, planned for one that it was not made for.

How many tokens are kept does not depend on which heads keep them, as long as each layer has as many
of either kind: they are then taken to be spread evenly, and the report says so.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from jaxkv.core.errors import InputError
from jaxkv.layers.base import Policy
from jaxkv.models.config import ModelConfig
from jaxkv.models.decoder import geometry
from jaxkv.policies.duo import DuoAttention
from jaxkv.policies.head_scores import GATES, SCORES, full_heads, head_scores, save_pattern
from jaxkv.policies.headkv import HeadKV


@contextlib.contextmanager
def even_where_unknown(
    policies: Sequence[Policy], config: ModelConfig
) -> Iterator[list[tuple[Policy, str]]]:
    """Each policy as it can be planned, and a note where its heads are assumed."""
    with tempfile.TemporaryDirectory(prefix="jaxkv-plan-") as name:
        yield [_planned(policy, config, Path(name)) for policy in policies]


def _planned(policy: Policy, config: ModelConfig, folder: Path) -> tuple[Policy, str]:
    shape = geometry(config, 1, 1)
    if isinstance(policy, DuoAttention) and policy.pattern is None:
        with contextlib.suppress(InputError):
            full_heads(None, policy.sparsity, shape)
            return policy, ""
        # In every layer the same heads come first, so that any share is as even as can be.
        order = 1 - np.arange(config.num_kv_heads) / config.num_kv_heads
        path = folder / "gates.json"
        save_pattern(path, GATES, np.tile(order, (config.num_layers, 1)), "", {})
        return dataclasses.replace(policy, pattern=str(path)), "heads spread evenly"
    if isinstance(policy, HeadKV) and policy.scores is None and policy.allocation == "own":
        with contextlib.suppress(InputError):
            head_scores(None, shape)
            return policy, ""
        path = folder / "scores.json"
        save_pattern(path, SCORES, np.ones((config.num_layers, config.num_heads)), "", {})
        return dataclasses.replace(policy, scores=str(path)), "budgets spread evenly"
    return policy, ""
