# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Attention ops on plain arrays, with one implementation per backend behind one name."""

from pallas_kernels.decode.api import decode_attention as decode_attention
from pallas_kernels.int4 import Int4 as Int4
from pallas_kernels.int4 import quantise4 as quantise4
from pallas_kernels.int8 import Int8 as Int8
from pallas_kernels.int8 import quantise as quantise
from pallas_kernels.mass.api import attention_mass as attention_mass
from pallas_kernels.pool.api import pool_attention as pool_attention
from pallas_kernels.prefill.api import prefill_attention as prefill_attention
