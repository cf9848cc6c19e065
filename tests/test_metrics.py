# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Metrics of answers: worked out by hand, and as the benchmarks' own packages give them."""

from __future__ import annotations

import sys
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxkv.eval.questions import metrics

# What rouge 1.0.1 gives as ["rouge-l"] for an answer and a reference.
ROUGE = {
    ("the cat sat on the mat", "the cat lay on the mat"): 0.7999999950000002,
    ("A report. It names two causes.", "The report names three causes. It is long."): (
        0.5714285665306124
    ),
    ("A report. It names two causes.", "A report"): 0.4999999962500001,
    ("我 来到 北京 清华大学 。", "我 在 北京大学 。"): 0.4444444395061729,
}
# What jieba 0.42.1 gives.
JIEBA = {
    "我来到北京清华大学。": ["我", "来到", "北京", "清华大学", "。"],
    "他在清华大学读书，2023年！": ["他", "在", "清华大学", "读书", "，", "2023", "年", "！"],
    "我在北京大学。": ["我", "在", "北京大学", "。"],
    "。！": ["。", "！"],
}

words = st.lists(st.sampled_from("the a An cat, dog. Dog's U.S. x-y 3.5 !".split()), max_size=8)
texts = words.map(" ".join)


class Rouge:
    """Answers as the package does, of what it was asked beforehand."""

    def __init__(self, metrics: list[str]) -> None:
        assert metrics == ["rouge-l"]

    def get_scores(self, hyps: list[str], refs: list[str], avg: bool) -> dict:
        assert avg
        if not hyps[0].strip("."):
            raise ValueError("Hypothesis is empty.")
        return {"rouge-l": {"r": 0.1, "p": 0.2, "f": ROUGE[hyps[0], refs[0]]}}


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for the packages of the official scorers, which tests do not install."""
    rouge, jieba = types.ModuleType("rouge"), types.ModuleType("jieba")
    monkeypatch.setattr(rouge, "Rouge", Rouge, raising=False)
    monkeypatch.setattr(jieba, "setLogLevel", lambda level: None, raising=False)
    monkeypatch.setattr(jieba, "lcut", JIEBA.__getitem__, raising=False)
    monkeypatch.setitem(sys.modules, "rouge", rouge)
    monkeypatch.setitem(sys.modules, "jieba", jieba)


class TestTokenF1:
    @pytest.mark.parametrize(
        ("text", "answer", "expected"),
        [
            ("The cat, a Cat!", "cat", 2 / 3),  # cat cat | cat: precision 1/2, recall 1
            ("in New York City", "New York", 2 / 3),  # 2 of 4, 2 of 2
            ("U.S.", "us", 1),  # punctuation leaves no gap
            ("an answer", "the answer", 1),
            ("then", "the", 0),  # an article is a whole word
            ("", "yes", 0),
            ("the", "a", 0),  # nothing is left of either
            ("no", "yes", 0),
            ("well-known fact", "well known fact", 2 / 5),  # wellknown fact | well known fact
        ],
    )
    def test_by_hand(self, text, answer, expected):
        assert metrics.token_f1(text, [answer]) == pytest.approx(100 * expected)

    def test_the_best_reference_counts(self):
        assert metrics.token_f1("red car", ["blue", "red", "a red car"]) == 100

    @given(texts, texts)
    def test_bounds_and_symmetry(self, text, answer):
        score = metrics.token_f1(text, [answer])
        assert 0 <= score <= 100
        assert score == metrics.token_f1(answer, [text])

    @given(texts, st.permutations(["one", "two", "three"]))
    def test_identity_whatever_the_order(self, text, order):
        assert metrics.token_f1(f"{text} one two three", [f"{' '.join(order)} {text}"]) == 100


class TestPackages:
    """Figures of the packages themselves."""

    def test_rouge_l(self, packages):
        got = metrics.rouge_l("the cat sat on the mat", ["the cat lay on the mat"])
        assert got == pytest.approx(79.9999995)
        refs = ["A report", "The report names three causes. It is long."]
        got = metrics.rouge_l("A report. It names two causes.", refs)
        assert got == pytest.approx(57.14285665306124)

    def test_rouge_l_of_no_words_is_nothing(self, packages):
        assert metrics.rouge_l("", ["the cat"]) == 0
        assert metrics.rouge_l("...", ["the cat"]) == 0

    def test_rouge_l_of_endless_sentences_is_nothing(self, packages, monkeypatch):
        def too_deep(*_, **__):
            raise RecursionError

        monkeypatch.setattr(Rouge, "get_scores", too_deep)
        assert metrics.rouge_l("a", ["a"]) == 0

    def test_chinese_rouge_l(self, packages):
        got = metrics.chinese_rouge_l("我来到北京清华大学。", ["我在北京大学。"])
        assert got == pytest.approx(44.44444395061729)

    def test_chinese_token_f1(self, packages):
        text = "他在清华大学读书，2023年！"
        # 他 在 清华大学 读书 2023 年 | 我 来到 北京 清华大学: 1 of 6, 1 of 4
        refs = ["我来到北京清华大学。"]
        assert metrics.chinese_token_f1(text, refs) == pytest.approx(20)
        # 我 在 北京大学: 1 of 6, 1 of 3
        refs.append("我在北京大学。")
        assert metrics.chinese_token_f1(text, refs) == pytest.approx(200 / 9)
        assert metrics.chinese_token_f1("。！", ["。！"]) == 0


class TestClasses:
    CLASSES = ("Food", "Date", "Other entity", "entity", "Abbreviation", "Animal")

    @pytest.mark.parametrize(
        ("text", "answer", "expected"),
        [
            ("Type: Food", "Food", 100),
            ("food", "Food", 0),  # case matters
            ("Food or Date", "Date", 50),
            ("Food, Date, Animal", "Date", 100 / 3),
            ("Date", "Food", 0),
            ("Other entity", "Other entity", 100),  # "entity" is only a part of it
            ("Other entity", "entity", 50),
        ],
    )
    def test_by_hand(self, text, answer, expected):
        got = metrics.one_class(text, [answer], self.CLASSES)
        assert got == pytest.approx(expected)

    def test_the_class_after_one_that_goes_is_passed_over(self):
        # b goes, ab is passed over, c goes; ab and abc are left.
        assert metrics.one_class("abc", ["abc"], ["b", "ab", "c", "abc"]) == 50
        # b goes, abc is passed over, ab goes, c is passed over; abc and c are left.
        assert metrics.one_class("abc", ["abc"], ["b", "abc", "ab", "c"]) == 50
        assert metrics.one_class("abc", ["abc"], ["abc", "b"]) == 100


class TestNumbers:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("7", 100),
            ("7 of 30", 50),
            ("7, 7, 17 or 77", 50),  # whole numbers are compared
            ("seven", 0),
            ("", 0),
        ],
    )
    def test_count(self, text, expected):
        assert metrics.right_numbers(text, ["7"]) == expected

    def test_retrieval(self):
        assert metrics.right_numbers("Paragraph 12", ["Paragraph 12"], "Paragraph ") == 100
        assert metrics.right_numbers("12 or 13", ["Paragraph 13"], "Paragraph ") == 50
        assert metrics.right_numbers("段落3", ["段落3"], "段落") == 100
        assert metrics.right_numbers("paragraph 1", ["Paragraph 13"], "Paragraph ") == 0


class TestCode:
    @pytest.mark.parametrize(
        ("text", "answer", "expected"),
        # Figures of fuzzywuzzy 0.18.0 without python-Levenshtein.
        [
            ("return x + 1", "return x + 10", 96),
            ("    self.close()", "    self.open()", 84),
            ("tide", "diet", 25),
            ("diet", "tide", 50),
            ("for i in range(n):", "for j in range(10):", 86),
            ("x = [" + "1, " * 100 + "]", "x = [" + "1, " * 90 + "2]", 95),
            ("", "x", 0),
        ],
    )
    def test_is_fuzzywuzzys_ratio(self, text, answer, expected):
        assert metrics.code_similarity(text, [answer]) == expected

    @pytest.mark.parametrize("before", ["\n\n", "# one\n", "// one\n", "```python\n", "`a`\n#\n"])
    def test_the_first_line_of_code_counts(self, before):
        assert metrics.code_similarity(f"{before}a = 1\nb = 2", ["a = 1"]) == 100

    def test_an_empty_line_is_a_line_of_code(self):
        assert metrics.code_similarity("# one\n\na = 1", ["a = 1"]) == 0


class TestLabels:
    PLACES = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
    THINGS = ("Bill", "Fred", "Jeff", "Mary", "apple", "football", "milk")

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("The most recent location of Mary is GARDEN.", 100),
            ("garden", 100),
            ("garden or kitchen", 0),
            ("the garden. Not the kitchen", 100),  # the first sentence alone
            ("Mary. The garden", 0),
            ("garden <example> kitchen", 100),
            ("garden <context> kitchen", 100),
            ("kitchen", 0),
            ("", 0),
        ],
    )
    def test_by_hand(self, text, expected):
        got = metrics.only_label(text, ["garden"], "Where is Mary?", self.PLACES)
        assert got == expected

    def test_what_the_question_names_does_not_count(self):
        question = "Where was the apple before the Kitchen?"
        text = "Before the kitchen the apple was in the garden"
        assert metrics.only_label(text, ["garden"], question, self.PLACES) == 100
        assert metrics.only_label("kitchen", ["kitchen"], question, self.PLACES) == 0

    def test_case_of_labels_does_not_matter(self):
        question = "Who gave the football to Bill?"
        assert metrics.only_label("fred gave it to Bill", ["Fred"], question, self.THINGS) == 100
        assert metrics.only_label("Fred or Jeff", ["Fred"], question, self.THINGS) == 0


def test_first_line():
    for text, expected in (("\n\nyes\nno", 100), ("yes", 100), (" \nyes", 0), ("", 0)):
        assert metrics.of_first_line(metrics.token_f1, text, ["yes"]) == expected
