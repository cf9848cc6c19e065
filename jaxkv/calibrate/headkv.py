# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Which heads find the answer: HeadKV's importance scores (arXiv 2410.19258, section 3.1)."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkv.calibrate.needles import (
    KINDS,
    Example,
    default_haystack,
    examples,
    split_sentences,
    token_f1,
    unigram_recall,
)
from jaxkv.calibrate.probe import Probe, aim, notes
from jaxkv.calibrate.task import Calibration, Common
from jaxkv.checkpoints.model import Model
from jaxkv.cli.arguments import check_positive, read_text
from jaxkv.core.errors import InputError
from jaxkv.core.progress import Progress
from jaxkv.generate.loop import DISPATCH, Programs, dispatch, feed, programs
from jaxkv.generate.sampling import Greedy
from jaxkv.generate.state import State, start
from jaxkv.layers.base import Cache
from jaxkv.policies.head_scores import SCORES, save_pattern

SCORE_NAMES = ("r2", "r2-script", "r")
MOST_NEW = 50  # tokens of an answer
CHUNK = 256  # tokens of a prompt a call
ROUND = 128  # a cache's capacity is a multiple of this

_DESCRIPTION = """Score every query head by how much it looks at the answer while the model gives it (HeadKV).

Each prompt hides a few sentences in a haystack and asks for one of them. Only examples that the
model answers count; their scores are averaged.

  r2         weights inside the right answer among the N largest of each step, over N, for an
             answer of N tokens (the paper's equation 2)
  r2-script  the same with N the tokens of the whole needle, as in the authors' script
  r          how often the largest weight is on the token of the needle that is then said
             (equation 1)
"""  # noqa: E501


@dataclasses.dataclass(frozen=True)
class Options:
    """Attributes:
    score: one of `SCORE_NAMES`.
    needles: of `KINDS`.
    lengths: tokens of haystack.
    depths: how many.
    haystack: its sentences.
    raw: without the chat template.
    min_examples: that must be answered.
    """

    score: str
    needles: tuple[str, ...]
    lengths: tuple[int, ...]
    depths: int
    haystack: tuple[str, ...]
    raw: bool
    min_examples: int


@dataclasses.dataclass(frozen=True)
class Answer:
    """What the model said, and where its heads looked.

    Attributes:
      text: up to the end of the first line.
      ids: one for each step: the newline or end-of-sequence token is the last.
      mass: float64 [L, M, N], see `probe.Probed`; M steps.
      top: int32 [L, M, N].
    """

    text: str
    ids: tuple[int, ...]
    mass: np.ndarray
    top: np.ndarray


def counted(example: Example, score: str) -> int:
    """How many of the largest weights count, which is also what their sum is divided by."""
    begin, end = example.needle_span if score == "r2-script" else example.answer_span
    return end - begin


def head_scores(example: Example, answer: Answer, score: str) -> np.ndarray:
    """One example's scores, float64 [L, N]."""
    if score != "r":
        return answer.mass.sum(axis=1) / counted(example, score)
    begin, end = example.needle_span
    inside = (answer.top >= begin) & (answer.top < end)
    token = np.asarray(example.ids)[np.minimum(answer.top, len(example.ids) - 1)]
    said = np.asarray(answer.ids)[None, :, None]
    return (inside & (token == said)).sum(axis=1) / (end - begin)


def passes(example: Example, text: str, score: str) -> bool:
    """Whether the model found the answer, more than half of it."""
    found = unigram_recall if score == "r" else token_f1
    return found(text, example.needle.answer.rest) > 0.5


@dataclasses.dataclass(frozen=True)
class Prober:
    """A model with the two programs that serve all examples.

    Attributes:
      model: the model.
      score: what counts; see `counted`.
      policy: takes the notes.
      capacity: tokens that the cache holds.
      eos: int32 [E], ids that end an answer.
      programs: prefill and decode.
    """

    model: Model
    score: str
    policy: Probe
    capacity: int
    eos: jax.Array
    programs: Programs

    @classmethod
    def of(cls, model: Model, made: Sequence[Example], score: str) -> Prober:
        """Compiles the programs for these examples."""
        longest = max(len(example.ids) for example in made)
        capacity = -(-(longest + MOST_NEW) // ROUND) * ROUND
        policy = Probe(MOST_NEW, max(counted(example, score) for example in made))
        eos = jnp.asarray(model.tokenizer.eos_ids or (-2,), jnp.int32)
        state = _empty(model, policy, capacity)
        compiled = programs(model.params, model.config, policy, Greedy(), state, eos, CHUNK)
        return cls(model, score, policy, capacity, eos, compiled)

    def ask(self, example: Example) -> Answer:
        """Greedy decoding from the last token of the prompt on.

        Stops at the end of a line or of the sequence, or after as many tokens as it should say.
        """
        begin, end = example.answer_span
        state = _empty(self.model, self.policy, self.capacity)
        target = np.array([[begin, end, counted(example, self.score)]])
        assert isinstance(state.cache, Cache)
        state = dataclasses.replace(state, cache=aim(state.cache, target))
        prompt = list(example.ids)
        state = feed(self.programs, self.model.params, self.model.config, state, [prompt[:-1]])
        # The step that takes in the last token of the prompt counts: it says the answer's first.
        # So decoding is made to choose that token first.
        last = jax.nn.one_hot(np.array(prompt[-1:]), self.model.config.vocab_size)
        state = dataclasses.replace(state, logits=last)
        limit = 1 + min(example.most_new, MOST_NEW)
        ids: list[int] = []
        while len(ids) < limit and not np.asarray(state.done).all():
            most = min(DISPATCH, limit - len(ids))
            state, new = dispatch(
                self.programs, self.model.params, self.model.config, state, self.eos, most
            )
            ids += new[0].tolist()
            if "\n" in self._text(ids[1:]):
                break
        said = self._first_line(ids[1:])
        assert isinstance(state.cache, Cache)
        mass, top = notes(state.cache, 0, len(said))
        return Answer(self._text(said).partition("\n")[0], tuple(said), mass, top)

    def _text(self, ids: Sequence[int]) -> str:
        return self.model.tokenizer.decode(ids)

    def _first_line(self, ids: list[int]) -> list[int]:
        """Up to the token that ends the line."""
        ends = (i for i in range(1, len(ids)) if "\n" in self._text(ids[:i]))
        return ids[: next(ends, len(ids))]


def _empty(model: Model, policy: Probe, capacity: int) -> State:
    """One stream with nothing in it."""
    return start(model.config, policy, 1, capacity, str(model.params["embed"].dtype), seed=0)


def measure(
    model: Model, made: Sequence[Example], score: str, progress: Progress
) -> tuple[np.ndarray, dict[str, tuple[int, int]]]:
    """Mean scores over the answered examples, and how many were, of how many, by kind.

    Returns:
      float64 [L, N], zeros if none was answered; and {kind: (answered, all)}.
    """
    prober = Prober.of(model, made, score)
    total = np.zeros((model.config.num_layers, model.config.num_heads))
    passed: Counter[str] = Counter()
    for done, example in enumerate(made, 1):
        answer = prober.ask(example)
        if passes(example, answer.text, score):
            passed[example.needle.kind] += 1
            total += head_scores(example, answer, score)
        progress(f"headkv {score}", done, len(made))
    every = Counter(example.needle.kind for example in made)
    counts = {kind: (passed[kind], every[kind]) for kind in every}
    return total / max(1, passed.total()), counts


def run(model: Model, common: Common, options: Options, progress: Progress) -> str:
    """Scores the heads, and writes them."""
    if model.config.windows:
        raise InputError(
            "the model has layers with a window of their own; scores need equal layers"
        )
    chat = model.tokenizer.chat_template is not None and not options.raw
    made = examples(
        model.tokenizer, options.needles, options.haystack, options.lengths, options.depths,
        common.seed, chat,
    )  # fmt: skip
    for example in made:
        model.check_ids(example.ids, "an example's")
    longest, most = max(len(example.ids) for example in made), model.config.max_positions
    if longest + MOST_NEW > most:
        raise InputError(
            f"--lengths has {max(options.lengths)}, which makes a prompt of {longest} tokens; the "
            f"model was trained for {most}, with {MOST_NEW} of them for the answer"
        )
    scores, counts = measure(model, made, options.score, progress)
    told = ", ".join(f"{kind} {got} of {every}" for kind, (got, every) in counts.items())
    passed = sum(got for got, _ in counts.values())
    if passed < options.min_examples:
        raise InputError(
            f"--min-examples is {options.min_examples}; the model answered {passed} of "
            f"{len(made)} examples ({told}), so there are no scores"
        )
    if not scores.any():
        raise InputError(f"no head looked at the answer in {passed} examples ({told})")
    about = {
        "name": model.name,
        "score": options.score,
        "examples": passed,
        "of": len(made),
        "by": {kind: list(pair) for kind, pair in counts.items()},
        "chat": chat,
        "command": common.command,
        "seed": common.seed,
        "date": datetime.date.today().isoformat(),
        "jax": jax.__version__,
    }
    save_pattern(common.out, SCORES, scores, model.config.identity, about)
    if common.plot is not None:
        from jaxkv.calibrate.plot import save_heads

        title = f"{model.name}: HeadKV {options.score}, {passed} examples"
        save_heads(common.plot, scores / scores.max(), title, "score over the largest")
    return f"{passed} of {len(made)} examples answered ({told}); {top_heads(scores)}"


def top_heads(scores: np.ndarray, count: int = 5) -> str:
    """The best heads as layer-head, with their share of all scores in percent."""
    share = 100 * scores / scores.sum()
    best = np.argsort(-share, axis=None, kind="stable")[:count]
    named = (divmod(int(i), share.shape[1]) for i in best)
    return "top heads " + ", ".join(f"{x}-{y} {share[x, y]:.1f} %" for x, y in named)


def add_arguments(add: Callable[..., Any]) -> None:
    """The calibration's own flags."""
    add(
        "--score",
        type=str,
        default="r2",
        metavar="NAME",
        help=f"one of {', '.join(SCORE_NAMES)} (default: r2)",
    )
    add(
        "--needles",
        type=str,
        default=",".join(KINDS),
        metavar="KINDS",
        help=f"of {', '.join(KINDS)}, separated by commas (default: both)",
    )
    add(
        "--lengths",
        type=str,
        default="0,250,500,1000,1500",
        metavar="N,N",
        help="tokens of haystack, separated by commas (default: 0,250,500,1000,1500)",
    )
    add(
        "--depths",
        type=int,
        default=5,
        metavar="N",
        help="how many depths, evenly from start to end (default: 5)",
    )
    add(
        "--haystack",
        action="append",
        type=str,
        metavar="FILE",
        help="a text to hide needles in; may be repeated (default: built in)",
    )
    add("--raw", action="store_true", help="without the model's chat template")
    add(
        "--min-examples",
        type=int,
        default=10,
        metavar="N",
        help="examples that must be answered; else no file is written (default: 10)",
    )


def check(given: argparse.Namespace) -> Options:
    """The calibration's options."""
    if given.score not in SCORE_NAMES:
        raise InputError(f"--score is {given.score!r}; it must be one of {', '.join(SCORE_NAMES)}")
    kinds = tuple(dict.fromkeys(kind.strip() for kind in given.needles.split(",")))
    for kind in kinds:
        if kind not in KINDS:
            raise InputError(f"--needles has {kind!r}; each must be one of {', '.join(KINDS)}")
    try:
        lengths = tuple(int(part) for part in given.lengths.split(","))
    except ValueError:
        raise InputError(
            f"--lengths is {given.lengths!r}; it must be integers separated by commas"
        ) from None
    if min(lengths) < 0:
        raise InputError(f"--lengths has {min(lengths)}; each must be at least 0")
    check_positive(given, "depths", "min_examples")
    return Options(
        score=given.score,
        needles=kinds,
        lengths=lengths,
        depths=given.depths,
        haystack=_read_haystack(given.haystack or []),
        raw=given.raw,
        min_examples=given.min_examples,
    )


def _read_haystack(paths: Sequence[str]) -> tuple[str, ...]:
    """The sentences of all files, one after the other."""
    texts = [read_text("--haystack", path) for path in paths]
    return tuple(x for text in texts for x in split_sentences(text)) or default_haystack()


CALIBRATION = Calibration(
    name="headkv",
    description=_DESCRIPTION,
    add_arguments=add_arguments,
    check=check,
    run=run,
)
