# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The page of commands says what the commands say."""

from __future__ import annotations

import command_pages

from jaxkv.__main__ import commands
from jaxkv.calibrate.command import KINDS
from jaxkv.eval.tasks.registry import TASKS


def test_the_page_is_up_to_date() -> None:
    written = command_pages.PAGE.read_text(encoding="utf-8")
    assert written == command_pages.page(), "write it anew: python -m tools.command_pages"


def test_it_has_every_command_task_and_kind() -> None:
    page = command_pages.page()
    titles = [f"## `jaxkv {name}`" for name in commands()]
    titles += [f"### `jaxkv eval {name}`" for name in TASKS]
    titles += [f"### `jaxkv calibrate {name}`" for name in KINDS]
    for title in titles:
        assert page.count(f"\n{title}\n") == 1
    for flag in ("--prompt-file FILE", "--policy.FIELD VALUE", "--save-cache DIR", "--text-file"):
        assert f"`{flag}" in page
