# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""A stranger's chat template gets little time, little memory, and no way out."""

from __future__ import annotations

import time

import pytest

from jaxkv.core.errors import InputError
from jaxkv.text.template import render

SAID = {"messages": [{"role": "user", "content": "é <b>"}], "add_generation_prompt": True}


def test_what_templates_are_written_in() -> None:
    text = render(
        "{% set seen = namespace(n=0) %}\n"
        "{%- for m in messages %}{% set seen.n = seen.n + 1 %}"
        "{{ m | tojson }}{% break %}{% endfor %}"
        "{% generation %}{{ seen.n }}{% endgeneration %}"
        "{{ dict(a=1)['a'] }}{{ strftime_now('%Y') | length }}{{ tools is none }}\n"
        "  {% if add_generation_prompt %}\nA:{% endif %}",
        {**SAID, "tools": None},
    )
    assert text == '{"role": "user", "content": "é <b>"}114True\nA:'


def test_templates_refuse_in_their_own_words() -> None:
    with pytest.raises(InputError, match="refuses this conversation: only one system message"):
        render("{{ raise_exception('only one system\nmessage') }}", SAID)


HOSTILE = {
    "much memory": ("{{ 'a' * 10**10 }}", "memory"),
    "doubling": ("{% set x = namespace(s='a') %}" + "{% set x.s = x.s ~ x.s %}" * 40, "memory"),
    "a huge number": ("{{ 7 ** (10 ** 10) }}", "longer than|memory"),
    "loops in loops": (
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "longer than",
    ),
    "a wide column": ("{{ '%1000000000d' | format(1) }}", "memory|makes"),
    "much text": ("{{ ('a' * 10**7) * 8 }}", "makes 80000000 characters"),
    "recursion": ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "refuses"),
    "Python's insides": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "refuses"),
    "a namespace": ("{% set n = namespace() %}{% set n.__class__ = 1 %}", "refuses"),
    "no template": ("{% for %}", "refuses"),
    "half a character": ("{{ '\\ud800' }}", "refuses"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_is_one_line(name: str, monkeypatch) -> None:
    template, said = HOSTILE[name]
    if "longer than" in said:  # which need not be five seconds
        monkeypatch.setattr("jaxkv.text.template._SECONDS", 1)
    began = time.monotonic()
    with pytest.raises(InputError, match=said) as error:
        render(template, SAID)
    assert time.monotonic() - began < 10 and "\n" not in str(error.value)
    assert len(str(error.value)) < 600
    # And the next one is rendered as if nothing had been.
    assert render("{{ messages[0]['role'] }}", SAID) == "user"


def test_long_templates_and_odd_messages_are_refused() -> None:
    with pytest.raises(InputError, match="at most"):
        render("a" * (2**20 + 1), SAID)
    with pytest.raises(InputError, match="cannot be put into"):
        render("a", {"messages": [{"content": object()}]})
