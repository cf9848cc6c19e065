# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Long-context inference in JAX with KV caches that stay small."""

from jaxkv.cache.accounting import nbytes as nbytes
from jaxkv.convert.export import export_hf as export_hf
from jaxkv.convert.model import Model as Model
from jaxkv.convert.named import named_config as named_config
from jaxkv.convert.sources import load as load
from jaxkv.errors import InputError as InputError
from jaxkv.generate.api import Generation as Generation
from jaxkv.generate.api import generate as generate
from jaxkv.generate.saved import load_cache as load_cache
from jaxkv.generate.saved import save_cache as save_cache
from jaxkv.layer import prefill as prefill
from jaxkv.layer import step as step
from jaxkv.models.config import ModelConfig as ModelConfig
from jaxkv.models.decoder import forward as forward
from jaxkv.models.decoder import init_cache as init_cache
from jaxkv.policies.adakv import AdaKV as AdaKV
from jaxkv.policies.base import Geometry as Geometry
from jaxkv.policies.duo import DuoAttention as DuoAttention
from jaxkv.policies.full import Full as Full
from jaxkv.policies.h2o import H2O as H2O
from jaxkv.policies.headkv import HeadKV as HeadKV
from jaxkv.policies.recompute import SlidingRecompute as SlidingRecompute
from jaxkv.policies.recycled import RecycledAttention as RecycledAttention
from jaxkv.policies.registry import make_policy as make_policy
from jaxkv.policies.snapkv import PyramidKV as PyramidKV
from jaxkv.policies.snapkv import SnapKV as SnapKV
from jaxkv.policies.streaming import StreamingLLM as StreamingLLM
from jaxkv.policies.streaming_plus import StreamingLLMPlus as StreamingLLMPlus
from jaxkv.policies.tova import TOVA as TOVA
from jaxkv.policies.window import Window as Window
from jaxkv.rope import Rope as Rope

__version__ = "0.1.0"
