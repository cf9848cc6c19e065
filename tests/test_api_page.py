# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The page of public names says what their docstrings say."""

from __future__ import annotations

import api_page

import jaxkv


def test_the_page_is_up_to_date() -> None:
    written = api_page.PAGE.read_text(encoding="utf-8")
    assert written == api_page.page(), "write it anew: python -m tools.api_page"


def test_it_has_every_public_name_once() -> None:
    listed = [name for _, names in api_page.groups() for name in names]
    assert sorted(listed) == sorted(jaxkv.__all__)
