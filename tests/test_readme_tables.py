# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Figures in Markdown come from reports, and those of the README are the reports' own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from readme_tables import RESULTS, main, policy_names, render

from jaxkv.core.errors import InputError

TIMES = ("tokens_per_s", "first_token_s", "load_s", "compile_s", "prefill_s")
ROWS = [
    {"policy": {"name": "full"}, "by": {"512": 100.0}, "bytes": 53222520, "roofline": 0.7734},
    {"policy": {"name": "snapkv", "budget": 64, "window": 8, "kernel": 7, "decode_room": 128},
     "by": {"512": 62.5}, "bytes": 4000000},
]  # fmt: skip
TABLE = """before
<!-- table r.json: policy | 512 = by.512 % | size = bytes MB | roofline = roofline share -->

| policy | 512 | size | roofline |
| --- | --- | --- | --- |
| `full` | 100 % | 53.2 | 77 % |
| `snapkv`, budget 64, window 8 | 62.5 % | 4 |  |

<!-- end -->
a step takes <!-- value r.json rows.0.roofline .2f -->0.77<!-- end --> of it
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "r.json").write_text(json.dumps({"rows": ROWS}))
    return tmp_path


def test_places_are_written_and_stay(folder: Path) -> None:
    stale = TABLE.replace("62.5 %", "99 %").replace(">0.77<", "><")
    assert render(stale, folder) == TABLE
    assert render(TABLE, folder) == TABLE


def test_lines_of_several_files(folder: Path) -> None:
    (folder / "s.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    table = render("<!-- table s.jsonl[1:],r.json[:1]: policy --><!-- end -->", folder)
    assert table.count("`snapkv`") == table.count("`full`") == 1
    assert table.index("`snapkv`") < table.index("`full`")
    (folder / "m.json").write_text(json.dumps({"measures": [{"measure": "score", "a": 3}]}))
    table = render("<!-- table m.json#measures: measure | first = a --><!-- end -->", folder)
    assert "| measure | first |" in table and "| score | 3 |" in table
    with pytest.raises(InputError, match="m.json has no rows"):
        render("<!-- table m.json: measure --><!-- end -->", folder)


def test_settings_that_tell_policies_apart() -> None:
    a = {"name": "streaming", "sinks": 4, "window": 1020}
    assert policy_names([a]) == ["`streaming`"]
    assert policy_names([a, a | {"sinks": 1}])[0] == "`streaming`, sinks 4"


def test_bytes_of_a_cache(folder: Path) -> None:
    place = "<!-- bytes llama-3.1-8b bfloat16 131072 full GB --><!-- end -->"
    # Two bytes of keys and of values, 8 heads of 128 dimensions, 32 layers; and positions.
    assert (
        ">17.2<" in render(place, folder) and round(131072 * 2 * 2 * 8 * 128 * 32 / 1e9, 1) == 17.2
    )


def test_what_is_missing_is_named(folder: Path) -> None:
    with pytest.raises(InputError, match="none.json cannot be read"):
        render("<!-- table none.json: policy --><!-- end -->", folder)
    with pytest.raises(InputError, match="r.json has no rows.0.nothing; 'nothing' is not there"):
        render("<!-- value r.json rows.0.nothing --><!-- end -->", folder)
    with pytest.raises(InputError, match=r"report 'r.json\[1\]' must be FILE.json, "):
        render("<!-- table r.json[1]: policy --><!-- end -->", folder)


def test_an_answer_as_it_stood_on_a_screen(folder: Path) -> None:
    report = {
        "text": "word " * 30 + "end.\n\nA second line.", "prompt_tokens": 7, "new_tokens": 33,
        "policy": {"name": "window", "window": 5}, "timing": dict.fromkeys(TIMES, 1.25),
        "cache": {"physical_bytes": 3_000_000, "nominal_bytes": 2_500_000},
    }  # fmt: skip
    (folder / "a.json").write_text(json.dumps(report))
    place = "<!-- answer a.json python -m jaxkv.decode --prompt x --><!-- end -->"
    told = render(place, folder)
    assert "\n```\n$ python -m jaxkv.decode --prompt x\nword word" in told
    assert "end.\n\nA second line.\n[window window=5] 7 + 33 tokens, 1.2 tokens/s; " in told
    assert "cache 3.0 MB, nominal 2.5 MB\n```\n" in told
    assert max(map(len, told.splitlines())) <= 100 and render(told, folder) == told
    with pytest.raises(InputError, match="r.json has no 'text'; it must be of one answer"):
        render(place.replace("a.json", "r.json"), folder)


def test_sizes_have_three_digits_and_no_exponent(folder: Path) -> None:
    sizes = {"rows": [{"b": b} for b in (56_000, 5_900_000, 999_400_000, 3_081_000_000)]}
    (folder / "b.json").write_text(json.dumps(sizes))
    table = render("<!-- table b.json: size = b MB --><!-- end -->", folder)
    assert [x.strip("| ") for x in table.splitlines()[4:8]] == ["0.056", "5.9", "999", "3,081"]


def test_check_and_write(folder: Path, capsys) -> None:
    page = folder / "page.md"
    page.write_text(TABLE.replace("62.5 %", "99 %"))
    words = ["--file", str(page), "--results", str(folder)]
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--check"])
    assert stopped.value.code == 1 and "not as its reports say" in capsys.readouterr().err
    main(words)
    assert page.read_text() == TABLE
    main([*words, "--check"])


ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_pages_are_as_their_reports_say(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert render(text, RESULTS) == text
    assert "<!-- table " in text or page.stem not in ("README", "results", "methods")


def test_the_readme_is_short() -> None:
    """It says what this is and where to read on; what fills pages has pages of its own."""
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 250
