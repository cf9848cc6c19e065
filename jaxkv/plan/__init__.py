# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""What fits a chip, and how fast it can be at best, without the chip."""
