# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The vocabulary of shapes.

B rows of a batch; T new tokens; S slots of a cache; N query heads; K KV heads; G = N / K query
heads of one KV head; H dimensions of a head; L layers; D hidden width; V vocabulary; P heads of a
position array: K, or 1 where all heads keep the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jax import Array
from jaxtyping import Float, Int

Queries = Float[Array, "B T N H"]
NewKeys = Float[Array, "B T K H"]
SlotKeys = Float[Array, "B K S H"]
SlotPositions = Int[Array, "B P S"]
Positions = Int[Array, "B T"]
Lengths = Int[Array, "B"]
Tokens = Int[Array, "B T"]
Token = Int[Array, "B 1"]
Hidden = Float[Array, "B T D"]
Residual = Float[Array, "B _ D"]  # T tokens, or 1 where only the last of each row goes on
OutputWeight = Float[Array, "N H D"]
SinkLogits = Float[Array, "N"]
Logits = Float[Array, "B T V"]

Params = Any  # the tree of `models.config.parameter_shapes`, with arrays
Rotation = Callable[[Array, Array], Array]  # (x [B, T, N, H], positions [B, T]) -> x, rotated
