# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""How an answer is held against its references: percentages, by the formulas of the benchmarks.

Where there are several references, the best one counts, unless a metric says otherwise.
"""

from __future__ import annotations

import difflib
import logging
import re
import string
from collections.abc import Callable, Collection, Sequence

from jaxkv.text.prose import bare_words, f1

Metric = Callable[[str, Sequence[str]], float]

# All but ASCII of what LongBench drops from Chinese words.
_CHINESE_PUNCTUATION = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》"
    "「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏"
)


def contained(text: str, answers: Sequence[str]) -> float:
    """Percentage of the references that a text contains, whatever their case.

    RULER's string_match_all.
    """
    return 100.0 * sum(ref.lower() in text.lower() for ref in answers) / len(answers)


def any_contained(text: str, answers: Sequence[str]) -> float:
    """100 if a text contains one of the references, whatever their case, else 0.

    RULER's string_match_part.
    """
    return 100.0 * any(ref.lower() in text.lower() for ref in answers)


def token_f1(text: str, answers: Sequence[str]) -> float:
    """F1 of the words, less case, ASCII punctuation and articles: SQuAD's and LongBench's."""
    return _best(answers, lambda ref: f1(bare_words(text), bare_words(ref)))


def chinese_token_f1(text: str, answers: Sequence[str]) -> float:
    """F1 of the words that the package jieba finds, less case and punctuation: LongBench's."""
    dropped = string.punctuation + _CHINESE_PUNCTUATION

    def words(part: str) -> list[str]:
        bare = ("".join(c for c in word.lower() if c not in dropped) for word in _cut(part))
        return [word for word in ("".join(word.split()) for word in bare) if word]

    return _best(answers, lambda ref: f1(words(text), words(ref)))


def rouge_l(text: str, answers: Sequence[str]) -> float:
    """F measure of the longest common subsequences of words, by the package rouge: LongBench's."""
    return _best(answers, lambda ref: _rouge_l(text, ref))


def chinese_rouge_l(text: str, answers: Sequence[str]) -> float:
    """As `rouge_l`, of the words that the package jieba finds."""
    words = " ".join(_cut(text))
    return _best(answers, lambda ref: _rouge_l(words, " ".join(_cut(ref))))


def one_class(text: str, answers: Sequence[str], classes: Sequence[str]) -> float:
    """One over the classes that a text names, if the right one is among them: LongBench's."""

    def score(answer: str) -> float:
        named = [name for name in classes if name in text]
        for name in named:
            # Names within the right one's name are none of the text's own. The class after one
            # that goes is passed over: the official scorer's, and its numbers are what counts.
            if name in answer and name != answer:
                named.remove(name)
        return 1 / len(named) if answer in named else 0.0

    return _best(answers, score)


def right_numbers(text: str, answers: Sequence[str], label: str = "") -> float:
    """Share of a text's numbers that are the reference's, after a label there: LongBench's."""
    found = re.findall(r"\d+", text)
    wanted = [re.findall(rf"{label}(\d+)", ref)[0] for ref in answers]
    return _best(wanted, lambda number: found.count(number) / max(len(found), 1))


def code_similarity(text: str, answers: Sequence[str]) -> float:
    """How alike the first line of code and the reference are, in whole percent: LongBench's.

    A line with a comment or Markdown in it is not code. The measure is fuzzywuzzy's ratio as it is
    without python-Levenshtein, which is difflib's.
    """
    lines = text.lstrip("\n").split("\n")
    code = next((x for x in lines if "`" not in x and "#" not in x and "//" not in x), "")

    def score(answer: str) -> float:
        return round(100 * difflib.SequenceMatcher(None, code, answer).ratio()) / 100

    return _best(answers, score)


def of_first_line(metric: Metric, text: str, answers: Sequence[str]) -> float:
    """A metric of a text's first line, after any empty ones."""
    return metric(text.lstrip("\n").split("\n")[0], answers)


def only_label(text: str, answers: Sequence[str], question: str, labels: Collection[str]) -> float:
    """100 if the first sentence names the reference and no other label, else 0: BABILong's.

    Labels that the question names do not count. Case does not matter.
    """
    said = text.lower().split(".")[0].split("<context>")[0].split("<example>")[0]
    names = {label.lower() for label in labels}
    left = {name for name in names if name in said and name not in question.lower()}
    return 100.0 * any(left == {ref.lower()} for ref in answers)


def _best(answers: Sequence[str], score: Callable[[str], float]) -> float:
    return 100.0 * max(score(answer) for answer in answers)


def _rouge_l(text: str, answer: str) -> float:
    from rouge import Rouge  # type: ignore[import-not-found]

    try:
        found = Rouge(metrics=["rouge-l"]).get_scores([text], [answer], avg=True)
    except (ValueError, RecursionError):
        # No words, or sentences too long for the package: nothing, as in the official scorer.
        return 0.0
    return found["rouge-l"]["f"]


def _cut(text: str) -> list[str]:
    """The words of Chinese text."""
    import jieba  # type: ignore[import-not-found]

    jieba.setLogLevel(logging.WARNING)  # it tells of its dictionary otherwise
    return jieba.lcut(text)
