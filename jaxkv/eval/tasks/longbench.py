# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""LongBench: 21 datasets of long documents, with their official prompts and metrics."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.util
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxkv.checkpoints.model import Model
from jaxkv.core.errors import InputError
from jaxkv.core.progress import Progress
from jaxkv.eval.questions import documents, metrics
from jaxkv.eval.questions.answers import KINDS, QUERY_AWARE, Row, draw
from jaxkv.eval.runner.result import Result
from jaxkv.eval.runner.task import Common, Task

_DESCRIPTION = f"""Ask the questions of LongBench's own files, with its prompts, lengths of answers and metrics.

trec, triviaqa, samsum, lsht, lcc and repobench-p are put raw, the others in the model's chat
template if it has one; of answers to the first four only the first line counts. score is the mean
of the datasets, by has each one: F1 of words, ROUGE-L, classes, numbers or similarity of code, the
best over the references, in percent.

{documents.CUT}

{QUERY_AWARE}
"""  # noqa: E501


@dataclasses.dataclass(frozen=True)
class Dataset:
    """How one dataset is asked and scored.

    Attributes:
      prompt: with the places of {context} and {input}.
      max_new_tokens: of an answer.
      metric: of an answer, or of one of the row's classes.
      packages: that the metric needs.
      label: what stands before the number in a reference.
      raw: without a chat template.
      first_line: whether only the first line of an answer counts.
    """

    prompt: str
    max_new_tokens: int
    metric: Callable[..., float] = metrics.token_f1
    packages: tuple[str, ...] = ()
    label: str = ""
    raw: bool = False
    first_line: bool = False


_CONCISELY = (
    "concisely as you can, using a single phrase or sentence if possible. If the question cannot "
    'be answered based on the information in the article, write "unanswerable". If the question '
    'is a yes/no question, answer "yes", "no", or "unanswerable". Do not provide any explanation.'
    "\n\n"
)
_PASSAGES = (
    "Answer the question based on the given passages. Only give me the answer and do not output "
    "any other words.\n\n"
)
_OF_PASSAGES = (
    f"{_PASSAGES}The following are given passages.\n{{context}}\n\n{_PASSAGES}"
    "Question: {input}\nAnswer:"
)

DATASETS: Mapping[str, Dataset] = {
    "narrativeqa": Dataset(
        # "asconcisely" is the official spelling.
        "You are given a story, which can be either a novel or a movie script, and a question. "
        "Answer the question asconcisely as you can, using a single phrase if possible. Do not "
        "provide any explanation.\n\nStory: {context}\n\nNow, answer the question based on the "
        "story asconcisely as you can, using a single phrase if possible. Do not provide any "
        "explanation.\n\nQuestion: {input}\n\nAnswer:",
        128,
    ),
    "qasper": Dataset(
        "You are given a scientific article and a question. Answer the question as "
        f"{_CONCISELY}Article: {{context}}\n\n Answer the question based on the above article as "
        f"{_CONCISELY}Question: {{input}}\n\nAnswer:",
        128,
    ),
    "multifieldqa_en": Dataset(
        "Read the following text and answer briefly.\n\n{context}\n\nNow, answer the following "
        "question based on the above text, only give me the answer and do not output any other "
        "words.\n\nQuestion: {input}\nAnswer:",
        64,
    ),
    "multifieldqa_zh": Dataset(
        "阅读以下文字并用中文简短回答：\n\n{context}\n\n"
        "现在请基于上面的文章回答下面的问题，只告诉我答案，不要输出任何其他字词。\n\n"
        "问题：{input}\n回答：",
        64,
        metrics.chinese_token_f1,
        ("jieba",),
    ),
    "hotpotqa": Dataset(_OF_PASSAGES, 32),
    "2wikimqa": Dataset(_OF_PASSAGES, 32),
    "musique": Dataset(_OF_PASSAGES, 32),
    "dureader": Dataset(
        "请基于给定的文章回答下述问题。\n\n文章：{context}\n\n"
        "请基于上述文章回答下面的问题。\n\n问题：{input}\n回答：",
        128,
        metrics.chinese_rouge_l,
        ("jieba", "rouge"),
    ),
    "gov_report": Dataset(
        "You are given a report by a government agency. Write a one-page summary of the report."
        "\n\nReport:\n{context}\n\nNow, write a one-page summary of the report.\n\nSummary:",
        512,
        metrics.rouge_l,
        ("rouge",),
    ),
    "qmsum": Dataset(
        "You are given a meeting transcript and a query containing a question or instruction. "
        "Answer the query in one or more sentences.\n\nTranscript:\n{context}\n\nNow, answer the "
        "query based on the above meeting transcript in one or more sentences.\n\n"
        "Query: {input}\nAnswer:",
        512,
        metrics.rouge_l,
        ("rouge",),
    ),
    "multi_news": Dataset(
        "You are given several news passages. Write a one-page summary of all news. \n\n"
        "News:\n{context}\n\nNow, write a one-page summary of all the news.\n\nSummary:",
        512,
        metrics.rouge_l,
        ("rouge",),
    ),
    "vcsum": Dataset(
        "下面有一段会议记录，请你阅读后，写一段总结，总结会议的内容。\n"
        "会议记录：\n{context}\n\n会议总结：",
        512,
        metrics.chinese_rouge_l,
        ("jieba", "rouge"),
    ),
    "trec": Dataset(
        "Please determine the type of the question below. Here are some examples of questions."
        "\n\n{context}\n{input}",
        64,
        metrics.one_class,
        raw=True,
        first_line=True,
    ),
    "triviaqa": Dataset(
        "Answer the question based on the given passage. Only give me the answer and do not "
        "output any other words. The following are some examples.\n\n{context}\n\n{input}",
        32,
        raw=True,
        first_line=True,
    ),
    "samsum": Dataset(
        "Summarize the dialogue into a few short sentences. The following are some examples.\n\n"
        "{context}\n\n{input}",
        128,
        metrics.rouge_l,
        ("rouge",),
        raw=True,
        first_line=True,
    ),
    "lsht": Dataset(
        "请判断给定新闻的类别，下面是一些例子。\n\n{context}\n{input}",
        64,
        metrics.one_class,
        raw=True,
        first_line=True,
    ),
    "passage_count": Dataset(
        "There are some paragraphs below sourced from Wikipedia. Some of them may be duplicates. "
        "Please carefully read these paragraphs and determine how many unique paragraphs there "
        "are after removing duplicates. In other words, how many non-repeating paragraphs are "
        "there in total?\n\n{context}\n\nPlease enter the final count of unique paragraphs after "
        "removing duplicates. The output format should only contain the number, such as 1, 2, 3, "
        "and so on.\n\nThe final answer is: ",
        32,
        metrics.right_numbers,
    ),
    "passage_retrieval_en": Dataset(
        "Here are 30 paragraphs from Wikipedia, along with an abstract. Please determine which "
        "paragraph the abstract is from.\n\n{context}\n\nThe following is an abstract.\n\n"
        "{input}\n\nPlease enter the number of the paragraph that the abstract is from. The "
        'answer format must be like "Paragraph 1", "Paragraph 2", etc.\n\nThe answer is: ',
        32,
        metrics.right_numbers,
        label="Paragraph ",
    ),
    "passage_retrieval_zh": Dataset(
        "以下是若干段落文字，以及其中一个段落的摘要。请确定给定的摘要出自哪一段。\n\n"
        "{context}\n\n下面是一个摘要\n\n{input}\n\n"
        '请输入摘要所属段落的编号。答案格式必须是"段落1"，"段落2"等格式\n\n答案是：',
        32,
        metrics.right_numbers,
        label="段落",
    ),
    "lcc": Dataset(
        "Please complete the code given below. \n{context}Next line of code:\n",
        64,
        metrics.code_similarity,
        raw=True,
    ),
    "repobench-p": Dataset(
        "Please complete the code given below. \n{context}{input}Next line of code:\n",
        64,
        metrics.code_similarity,
        raw=True,
    ),
}


def read(path: Path, name: str) -> Iterator[Row]:
    """The rows of one dataset's file.

    Raises:
      InputError: a line is not in LongBench's format.
    """
    dataset = DATASETS[name]
    before, after = dataset.prompt.split("{context}")
    for where, record in documents.read_records(path):
        context, asked = (documents.text_of(record, part, where) for part in ("context", "input"))
        answers = documents.texts_of(record, "answers", where)
        metric = dataset.metric
        if metric is metrics.right_numbers:
            for answer in answers:
                if not re.search(rf"{dataset.label}\d", answer):
                    raise InputError(
                        f"{where}: answers has {answer!r:.40}; for {name} it must be "
                        f"{dataset.label}NUMBER"
                    )
            metric = functools.partial(metric, label=dataset.label)
        elif metric is metrics.one_class:
            classes = documents.texts_of(record, "all_classes", where)
            metric = functools.partial(metric, classes=classes)
        if dataset.first_line:
            metric = functools.partial(metrics.of_first_line, metric)
        yield Row(
            context=before + context,
            question=after.replace("{input}", asked),
            answer_prefix="",
            answers=answers,
            max_new_tokens=dataset.max_new_tokens,
            task=name,
            metric=metric,
            chat=False if dataset.raw else None,
        )


def check_packages(name: str) -> None:
    """Before the work: what a dataset's metric needs is there.

    Raises:
      InputError: it is not.
    """
    needed = DATASETS[name].packages
    missing = [package for package in needed if importlib.util.find_spec(package) is None]
    if missing:
        raise InputError(
            f"{name} is scored with {' and '.join(missing)}; pip install {' '.join(missing)}, or "
            "choose --datasets without it"
        )


def evaluate(
    model: Model, common: Common, options: documents.Options, progress: Progress
) -> Iterable[Result]:
    """One result for each policy."""
    return documents.evaluate(TASK.name, model, common, options, progress)


def add_arguments(add: Callable[..., Any]) -> None:
    """The task's own flags."""
    documents.add_arguments(add, "the folder with LongBench's files, such as hotpotqa.jsonl")
    add(
        "--datasets",
        type=str | None,
        metavar="NAME,NAME",
        help=f"of {', '.join(DATASETS)} (default: those found)",
    )


def check(given: argparse.Namespace) -> documents.Options:
    """The task's options, with the files read."""
    folder = documents.data_path(given)
    found = [name for name in DATASETS if (folder / f"{name}.jsonl").is_file()]
    names = documents.chosen("--datasets", given.datasets, list(DATASETS), found)
    if not names:
        raise InputError(f"--data {folder} has no files of LongBench, such as hotpotqa.jsonl")
    for name in names:
        check_packages(name)
    paths = ((folder / f"{name}.jsonl", name) for name in names)
    return documents.check(given, (row for path in paths for row in read(*path)))


TASK = Task(
    name="longbench",
    summary="LongBench's 21 datasets, of its own files",
    description=_DESCRIPTION,
    add_arguments=add_arguments,
    check=check,
    evaluate=evaluate,
    draw=draw,
    kinds=KINDS,
)
