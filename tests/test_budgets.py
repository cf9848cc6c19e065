# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Budgets by the papers' formulas and their golden values, and groups against every other split."""

from __future__ import annotations

import itertools

import numpy as np
import policy_cases
import pytest
import toys
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxkv import AdaKV, HeadKV, InputError, PyramidKV, SnapKV
from jaxkv.layers.capacity import round_up, split_heads
from jaxkv.models.plan import plan
from jaxkv.policies.budgets import by_shares, headkv, in_tokens, pyramid, redistribute


@pytest.mark.parametrize(
    ("budget", "beta", "base", "top"),
    [
        (64, 1.005, 1, 849),
        (64, 1.2, 10, 719),
        (128, 1.005, 1, 1835),
        (128, 1.2, 20, 1561),
        (128, 2, 60, 985),
        (128, 10, 108, 293),
        (1024, 1.2, 170, 13208),
    ],
)
def test_headkv_budgets_of_the_released_scores(budget, beta, base, top) -> None:
    """The top head of the released Llama-3-8B scores has 0.0150502 of the mass, two have none."""
    scores = np.full((32, 32), (1 - 0.0150502) / 1021)
    scores[0, 1] = scores[3, 3] = 0.0
    scores[15, 30] = 0.0150502
    caps = headkv(scores, budget, beta, window=8)
    assert caps[15, 30] == top and caps.min() == base
    # Rounding each of 1,024 heads moves the sum by half a token a head at most.
    assert abs(caps.sum() - (budget - 8) * 1024) <= 512


def test_a_small_beta_is_uneven_and_a_large_one_even() -> None:
    scores = np.random.default_rng(0).dirichlet(np.full(64, 0.2)).reshape(8, 8)
    spread = [headkv(scores, 128, beta, 8).std() for beta in (1.005, 1.2, 2.0, 10.0)]
    assert spread == sorted(spread, reverse=True)


@pytest.mark.parametrize(("budget", "most", "least"), [(128, 234, 6), (1024, 1982, 50)])
def test_pyramid_falls_in_equal_steps_and_sums_to_the_budget(budget, most, least) -> None:
    caps = pyramid(budget, window=8, beta=20, num_layers=32, longest=100_000)
    assert sum(caps) == 32 * (budget - 8)
    assert abs(caps[0] - most) <= 2 and abs(caps[-1] - least) <= 2
    steps = -np.diff(caps)
    assert steps.min() >= 0 and steps.max() - steps.min() <= 3


def test_pyramid_never_gives_a_layer_more_than_the_prompt_has() -> None:
    caps = pyramid(1024, window=8, beta=20, num_layers=32, longest=1200)
    assert max(caps) <= 1192 and sum(caps) == 32 * 1016
    assert pyramid(1024, window=8, beta=20, num_layers=4, longest=100) == [1016] * 4
    assert pyramid(20, window=8, beta=20, num_layers=1, longest=1000)[0] >= 12


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 4000), min_size=1, max_size=6))
def test_groups_are_the_best_of_all_partitions(caps) -> None:
    def cost(groups) -> int:
        return sum(len(g) * max(round_up(caps[h]) for h in g) for g in groups)

    groups = split_heads(caps)
    assert sorted(h for g in groups for h in g) == list(range(len(caps)))
    assert len(groups) <= 4
    best = min(
        cost([g for i in range(4) if (g := [h for h in range(len(caps)) if labels[h] == i])])
        for labels in itertools.product(range(4), repeat=len(caps))
    )
    assert cost(groups) == best


def test_heads_alike_are_one_group() -> None:
    assert split_heads([96] * 8) == (tuple(range(8)),)
    assert split_heads([5, 900, 5, 900]) == ((1, 3), (0, 2))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3000), min_size=1, max_size=40), st.integers(1, 2500))
def test_what_a_prompt_cannot_fill_goes_to_other_heads(caps, longest) -> None:
    given_caps = np.asarray(caps)[None]
    spread = redistribute(given_caps, longest)
    assert spread.max() <= longest
    assert spread.sum() == min(sum(caps), longest * len(caps))
    assert (spread >= np.minimum(given_caps, longest)).all()
    if max(caps) <= longest:
        np.testing.assert_array_equal(spread, given_caps)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any), st.integers(0, 400))
def test_shares_are_dealt_out_to_the_last_token(weights, mean) -> None:
    shares = np.asarray(weights)[None] / np.mean(weights)
    caps = by_shares(shares, mean)
    assert caps.sum() == mean * caps.size
    assert np.abs(caps - shares * mean).max() < 1 + 1e-9


def test_a_third_of_the_budget_is_not_lost_on_a_short_prompt() -> None:
    scores = np.random.default_rng(1).dirichlet(np.full(1024, 0.3)).reshape(32, 32)
    caps = headkv(scores, 1024, 1.2, 8)
    lost = caps.sum() - np.minimum(caps, 2040).sum()
    assert lost > 0.2 * caps.sum()
    assert redistribute(caps, 2040).sum() == caps.sum()


def test_a_budget_may_be_a_share() -> None:
    assert in_tokens(0.25, 1000) == 250 and in_tokens(128, 1000) == 128


def test_it_is_known_whose_budgets_depend_on_the_length() -> None:
    """Those caches are made as long as the prompt: heads must not be cut to a short default."""
    short, long = (toys.geometry(max_length=length) for length in (64, 2048))
    scores = policy_cases.SCORES
    for policy in (
        HeadKV(64, scores=scores), HeadKV(scores=scores, beta=10.0), PyramidKV(256),
        PyramidKV(128, window=64), SnapKV(0.5),
    ):  # fmt: skip
        assert plan(policy, short).keeps != plan(policy, long).keeps, policy
    for policy in (SnapKV(64), AdaKV(64)):
        assert plan(policy, short).keeps == plan(policy, long).keeps, policy


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: SnapKV(budget=16), "budget is 16; it must be at least the window of 32"),
        (lambda: SnapKV(budget=1.5), "budget is 1.5; a share"),
        (lambda: SnapKV(window=0), "window is 0"),
        (lambda: SnapKV(kernel=4), "kernel is 4; it must be odd"),
        (lambda: SnapKV(decode_room=-1), "decode_room is -1"),
        (lambda: PyramidKV(beta=0), "beta is 0"),
        (lambda: HeadKV(beta=0.5), "beta is 0.5"),
        (lambda: HeadKV(beta=float("nan")), "beta is nan"),
        (lambda: AdaKV(floor=1.5), "floor is 1.5; it must be from 0 to 1"),
        (lambda: SnapKV(budget=35, sinks=4), "budget is 35; it must be at least the 4 sinks and"),
        (lambda: SnapKV(allocation="even"), "allocation is 'even'; it must be uniform, ada, glob"),
        (lambda: SnapKV(allocation="own"), "allocation is 'own'; it must be uniform, ada, globa"),
        (lambda: PyramidKV(allocation=None), "allocation is None; it must be own, uniform, ada, g"),
        (
            lambda: SnapKV(floor=0.5, allocation="global"),
            "floor is 0.5, which is for allocation 'ada'",
        ),
        (lambda: SnapKV(allocation="table"), "table is not given; allocation 'table' needs a file"),
        (lambda: SnapKV(table="a.json"), "table is 'a.json', which is for allocation 'table'; the"),
        (lambda: SnapKV(floor=0.5), "floor is 0.5, which is for allocation 'ada'; the allocation"),
        (lambda: PyramidKV(beta=3, allocation="ada"), "beta is 3, which is for allocation 'own'"),
        (lambda: HeadKV(scores="a", allocation="ada"), "scores is 'a', which is for allocation"),
    ],
)
def test_bad_settings_are_one_line(make, says) -> None:
    with pytest.raises(InputError, match=says.replace("(", r"\(")):
        make()
