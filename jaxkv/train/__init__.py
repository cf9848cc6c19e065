# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
