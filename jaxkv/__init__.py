# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Long-context inference in JAX with KV caches that stay small.

A policy says what is kept, a cache is a pytree of static shape, a step is one compiled program.

    import jaxkv

    model = jaxkv.load("smollm2-135m-instruct")
    policy = jaxkv.SnapKV(budget=256)
    out = jaxkv.generate(model, "A long text ...", policy=policy, max_new_tokens=64)
    print(out.texts[0], out.stats["cache"]["physical_bytes"])

What a small cache costs in quality says `evaluate`. By hand, or in programs of your own:
`init_cache` and `forward`. In models of others: `layer_cache`, the cache of one layer, whose
`attend` stands where their attention was. A policy of your own is a `ScoredPolicy` with a `score`,
or anything with `at`, and `check_policy` tries it.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxkv.alone import layer_cache as layer_cache
    from jaxkv.cache.arrays import from_arrays as from_arrays
    from jaxkv.cache.arrays import to_arrays as to_arrays
    from jaxkv.cache.bytes import nbytes as nbytes
    from jaxkv.cache.slab import Slab as Slab
    from jaxkv.cache.store import Packed as Packed
    from jaxkv.check import check_policy as check_policy
    from jaxkv.checkpoints.export import export_hf as export_hf
    from jaxkv.checkpoints.model import Model as Model
    from jaxkv.checkpoints.named import named_config as named_config
    from jaxkv.checkpoints.sources import load as load
    from jaxkv.core.errors import InputError as InputError
    from jaxkv.core.rope import Rope as Rope
    from jaxkv.eval.api import evaluate as evaluate
    from jaxkv.eval.results import Results as Results
    from jaxkv.generate.api import Generation as Generation
    from jaxkv.generate.api import generate as generate
    from jaxkv.generate.compress import compress as compress
    from jaxkv.generate.saved import load_cache as load_cache
    from jaxkv.generate.saved import save_cache as save_cache
    from jaxkv.layers.api import prefill as prefill
    from jaxkv.layers.api import step as step
    from jaxkv.layers.base import Chunk as Chunk
    from jaxkv.layers.base import Geometry as Geometry
    from jaxkv.layers.base import LayerPolicy as LayerPolicy
    from jaxkv.layers.base import Policy as Policy
    from jaxkv.layers.prompt import Prompt as Prompt
    from jaxkv.models.config import ModelConfig as ModelConfig
    from jaxkv.models.config import parameter_shapes as parameter_shapes
    from jaxkv.models.decoder import forward as forward
    from jaxkv.models.decoder import init_cache as init_cache
    from jaxkv.models.mesh import mesh as mesh
    from jaxkv.policies.adakv import AdaKV as AdaKV
    from jaxkv.policies.duo import DuoAttention as DuoAttention
    from jaxkv.policies.full import Full as Full
    from jaxkv.policies.h2o import H2O as H2O
    from jaxkv.policies.headkv import HeadKV as HeadKV
    from jaxkv.policies.recompute import SlidingRecompute as SlidingRecompute
    from jaxkv.policies.recycled import RecycledAttention as RecycledAttention
    from jaxkv.policies.registry import make_policy as make_policy
    from jaxkv.policies.registry import register as register
    from jaxkv.policies.scored import ScoredPolicy as ScoredPolicy
    from jaxkv.policies.snapkv import PyramidKV as PyramidKV
    from jaxkv.policies.snapkv import SnapKV as SnapKV
    from jaxkv.policies.streaming import StreamingLLM as StreamingLLM
    from jaxkv.policies.tova import TOVA as TOVA
    from jaxkv.policies.window import Window as Window

__version__ = "0.1.0"

__all__ = [
    # Models in and out.
    "load", "Model", "ModelConfig", "parameter_shapes", "Rope", "named_config", "export_hf",
    "mesh",
    # Text.
    "generate", "Generation",
    # What a small cache costs.
    "evaluate", "Results",
    # Caches.
    "init_cache", "forward", "compress", "nbytes", "save_cache", "load_cache", "to_arrays",
    "from_arrays",
    # One layer of a model that is written elsewhere.
    "layer_cache", "prefill", "step",
    # Policies.
    "Full", "Window", "StreamingLLM", "SlidingRecompute", "DuoAttention", "HeadKV", "SnapKV",
    "PyramidKV", "AdaKV", "RecycledAttention", "H2O", "TOVA", "make_policy",
    # A policy of your own.
    "ScoredPolicy", "Prompt", "register", "check_policy", "Policy", "LayerPolicy", "Chunk",
    "Geometry", "Slab", "Packed",
    # What is wrong with what was given.
    "InputError",
]  # fmt: skip

# Where each name is. It is imported when it is first used, so that a command can say what is wrong
# with its flags, or end by Ctrl-C, before jax is there.
_PLACES = {
    "alone": "layer_cache",
    "cache.arrays": "from_arrays to_arrays",
    "cache.bytes": "nbytes",
    "cache.slab": "Slab",
    "cache.store": "Packed",
    "check": "check_policy",
    "checkpoints.export": "export_hf",
    "checkpoints.model": "Model",
    "checkpoints.named": "named_config",
    "checkpoints.sources": "load",
    "core.errors": "InputError",
    "core.rope": "Rope",
    "eval.api": "evaluate",
    "eval.results": "Results",
    "generate.api": "Generation generate",
    "generate.compress": "compress",
    "generate.saved": "load_cache save_cache",
    "layers.api": "prefill step",
    "layers.base": "Chunk Geometry LayerPolicy Policy",
    "layers.prompt": "Prompt",
    "models.config": "ModelConfig parameter_shapes",
    "models.decoder": "forward init_cache",
    "models.mesh": "mesh",
    "policies.adakv": "AdaKV",
    "policies.duo": "DuoAttention",
    "policies.full": "Full",
    "policies.h2o": "H2O",
    "policies.headkv": "HeadKV",
    "policies.recompute": "SlidingRecompute",
    "policies.recycled": "RecycledAttention",
    "policies.registry": "make_policy register",
    "policies.scored": "ScoredPolicy",
    "policies.snapkv": "PyramidKV SnapKV",
    "policies.streaming": "StreamingLLM",
    "policies.tova": "TOVA",
    "policies.window": "Window",
}
_MODULE_OF = {name: module for module, names in _PLACES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'jaxkv' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"jaxkv.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*_MODULE_OF, "__version__"]


class _Package(types.ModuleType):
    """The function `generate` is found under its name, and not the package that it is in."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _MODULE_OF and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
