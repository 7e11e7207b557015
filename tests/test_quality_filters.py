"""The filters, alone and in a row, and what they say."""

from __future__ import annotations

import math
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retain.quality import filters
from retain.quality.filters import Candidate, Reference
from retain.quality.funnel import ALONE, TOGETHER, Funnel, explain, filter_candidates
from retain.synthesis_sections import FiltersConfig
from retain.types import InputError

OFF = {"heuristics": False, "memorization": None, "perplexity": None, "consistency": None, "diversity": None}
LABELS = ("positive", "negative")
TEXTS = (
    "a warm and funny film about growing old",
    "the plot makes no sense at any point",
    "two hours that feel like a whole week",
    "the actors carry a script that is thin",
    "sharp dialogue and a score to remember",
    "it wastes its cast on jokes from the bin",
    "every frame of this looks like a painting",
    "boring from the first minute to the last",
)


def config(**changed) -> FiltersConfig:
    return FiltersConfig(**(OFF | changed))


def scored(*pairs: tuple[float | None, float | None]) -> list[Candidate]:
    """Candidates with (consistency, perplexity)."""
    return [
        Candidate(TEXTS[row % 8], LABELS[row % 2], perplexity, consistency)
        for row, (consistency, perplexity) in enumerate(pairs)
    ]


def kept(verdicts: list[str | None]) -> list[int]:
    return [row for row, verdict in enumerate(verdicts) if verdict is None]


# ---- thresholds -----------------------------------------------------------------------------------------


def test_thresholds_are_strict():
    some = scored((0.5, 100.0), (0.51, 99.9), (math.nan, math.nan), (1.0, math.inf))
    assert kept(filters.low_perplexity(some, 100.0)) == [1]
    assert kept(filters.high_consistency(some, 0.5)) == [1, 3]
    assert filters.low_perplexity(some, 100.0)[0] == "100 is not below 100"
    assert filters.high_consistency(some, 0.5)[2] == "nan is not above 0.5"
    votes = [Candidate("x", "y", votes=share) for share in (0.6, 0.4)]
    assert filters.enough_votes(votes, 0.6) == [None, "0.4 of the votes is less than 0.6"]


def test_stricter_for_older_tasks():
    assert [filters.perplexity_limit(100.0, k) for k in (0, 1, 10)] == pytest.approx([100, 100 / 1.1, 50])
    assert [filters.consistency_limit(0.5, k) for k in (0, 1, 5, 9, 20)] == pytest.approx([0.5, 0.55, 0.75, 0.95, 0.95])
    assert filters.consistency_limit(0.98, 3) == 0.98


@given(st.floats(0, 1), st.floats(1e-3, 1e4), st.integers(0, 50))
def test_stricter_never_loosens(consistency, perplexity, k):
    assert filters.perplexity_limit(perplexity, k + 1) <= filters.perplexity_limit(perplexity, k) <= perplexity
    assert filters.consistency_limit(consistency, k + 1) >= filters.consistency_limit(consistency, k) >= consistency


def test_a_score_that_is_missing_is_asked_for_or_an_error():
    some = scored((0.9, None), (0.9, 5.0), (0.9, None))
    with pytest.raises(ValueError, match="candidate 0 has no perplexity"):
        filters.low_perplexity(some, 100.0)
    asked = []

    def complete(missing):
        asked.extend(missing)
        for one in missing:
            one.perplexity = 200.0

    assert kept(filters.low_perplexity(some, 100.0, complete)) == [1]
    assert asked == [some[0], some[2]]
    assert filters.low_perplexity([], 100.0, complete) == []


# ---- ranking --------------------------------------------------------------------------------------------


def test_ranking_by_consistency_then_perplexity_then_order():
    some = scored((0.5, 10.0), (0.9, 50.0), (0.9, 20.0), (None, 1.0), (0.5, 10.0), (0.9, None), (math.nan, 1.0))
    assert filters.ranking(some) == [2, 1, 5, 0, 4, 3, 6]
    assert some[0].confidence == 0.5


def test_the_best_share_is_rounded_as_amounts_are():
    some = scored(*((row / 10, 1.0) for row in range(5)))
    assert kept(filters.best_share(some, 0.7)) == [1, 2, 3, 4]  # 3.5 of 5
    assert kept(filters.best_share(some, 0.69)) == [2, 3, 4]
    assert kept(filters.best_share(some, 1.0)) == [0, 1, 2, 3, 4]
    assert filters.best_share(some, 0.2)[0] == "not among the best 1 of 5 by consistency and perplexity"
    assert filters.best_share([], 0.7) == []


# ---- diversity ------------------------------------------------------------------------------------------


def unit(degrees: float) -> list[float]:
    return [math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]


def embedding(angles: dict[str, float]):
    return lambda texts: np.array([unit(angles[text]) for text in texts])


def test_the_better_of_two_near_duplicates_stays():
    some = scored((0.6, 9.0), (0.9, 9.0), (0.7, 9.0))
    embed = embedding({TEXTS[0]: 0, TEXTS[1]: 10, TEXTS[2]: 90})
    limit = config(diversity=0.9, similarity="sentence-transformers")
    verdicts = filters.diversity(some, limit, embed)
    assert kept(verdicts) == [1, 2]
    assert verdicts[0] == "similarity 0.98 to a kept one is above 0.9"


def test_the_penalty_form_ranks_by_confidence_less_similarity():
    angles = {TEXTS[0]: 0.0, TEXTS[1]: 0.0, TEXTS[2]: 90.0, TEXTS[3]: 90.0}
    some = scored((0.9, 1.0), (0.5, 1.0), (0.8, 1.0), (0.4, 1.0))
    penalty = {"diversity": 0.9, "diversity_form": "penalty", "similarity": "sentence-transformers"}
    assert kept(filters.diversity(some, config(**penalty, keep_ratio=0.5), embedding(angles))) == [0, 2]
    assert kept(filters.diversity(some, config(**penalty), embedding(angles))) == [0, 1, 2]  # 0.7 of 4
    # three alike: means 2/3, 2/3, 2/3 and 0; log 0.4 = -0.92 beats log 0.5 - 2/3 = -1.36
    angles = {TEXTS[0]: 0.0, TEXTS[1]: 0.0, TEXTS[2]: 0.0, TEXTS[3]: 90.0}
    assert kept(filters.diversity(some, config(**penalty, keep_ratio=0.75), embedding(angles))) == [0, 2, 3]
    weightless = config(**penalty, keep_ratio=0.75, diversity_weight=0.0)
    assert kept(filters.diversity(some, weightless, embedding(angles))) == [0, 1, 2]


def test_confidence_0_and_none_in_the_penalty_form():
    some = scored((0.0, 1.0), (None, 1.0), (0.5, 1.0))
    penalty = config(diversity=0.9, diversity_form="penalty", similarity="jaccard", keep_ratio=0.67)
    assert kept(filters.diversity(some, penalty)) == [1, 2]


@pytest.mark.parametrize("similarity", ["minhash", "jaccard", "rouge"])
def test_similarities_of_texts_need_no_embeddings(similarity):
    some = scored((0.5, 1.0), (0.6, 1.0), (0.7, 1.0))
    some[2] = Candidate(TEXTS[0].upper() + "!", "positive", 1.0, 0.7)
    assert kept(filters.diversity(some, config(diversity=0.9, similarity=similarity))) == [1, 2]
    assert filters.diversity([], config(diversity=0.9, similarity=similarity)) == []


def test_hidden_states_are_centered():
    some = scored(*[(0.5, 1.0)] * 4)
    rows = {text: np.array([100.0, *unit(90 * row)]) for row, text in enumerate(TEXTS[:4])}
    embed = lambda texts: np.array([rows[text] for text in texts])  # noqa: E731
    assert kept(filters.diversity(some, config(diversity=0.9, similarity="sentence-transformers"), embed)) == [0]
    assert kept(filters.diversity(some, config(diversity=0.9), embed)) == [0, 1, 2, 3]
    assert kept(filters.diversity(some, config(diversity=0.9), embed, np.array([100.0, 0, 0]))) == [0, 1, 2, 3]
    assert kept(filters.diversity(some, config(diversity=0.9), embed, np.zeros(3))) == [0]
    with pytest.raises(ValueError, match="'hidden' needs embeddings"):
        filters.diversity(some, config(diversity=0.9))


# ---- balance --------------------------------------------------------------------------------------------


def test_balance_follows_the_target():
    labels = ["a"] * 80 + ["b"] * 15 + ["c"] * 5 + ["d"] * 3
    verdicts = filters.balanced(labels, {"a": 0.4, "b": 0.4, "c": 0.2}, np.random.default_rng(0))
    # 5/0.2 = 25 in all: 10, 10, 5
    assert Counter(labels[row] for row in kept(verdicts)) == {"a": 10, "b": 10, "c": 5}
    assert Counter(filter(None, verdicts)) == {
        "more than 10 of 'a'": 70,
        "more than 10 of 'b'": 5,
        "'d' is no label": 3,
    }


def test_a_label_without_samples_is_left_out():
    labels = ["a"] * 4 + ["b"] * 9
    verdicts = filters.balanced(labels, {"a": 0.25, "b": 0.25, "c": 0.5}, np.random.default_rng(0))
    assert Counter(labels[row] for row in kept(verdicts)) == {"a": 4, "b": 4}
    assert filters.balanced([], {"a": 1.0}, np.random.default_rng(0)) == []
    assert filters.balanced(["x"], {}, np.random.default_rng(0)) == ["'x' is no label"]


def test_what_balance_keeps_is_drawn():
    labels = ["a"] * 50 + ["b"] * 5
    draws = {tuple(kept(filters.balanced(labels, {"a": 0.5, "b": 0.5}, np.random.default_rng(s)))) for s in range(20)}
    assert len(draws) == 20
    assert len({row for draw in draws for row in draw}) > 40


@given(
    st.lists(st.sampled_from("abc"), max_size=60),
    st.dictionaries(st.sampled_from("abcd"), st.floats(0.01, 1), min_size=1),
)
def test_balance_is_as_near_the_target_as_whole_samples_are(labels, shares):
    total = sum(shares.values())
    target = {label: share / total for label, share in shares.items()}
    found = Counter(labels[row] for row in kept(filters.balanced(labels, target, np.random.default_rng(0))))
    present = {label: share for label, share in target.items() if label in labels}
    exact = min((labels.count(label) / share for label, share in present.items()), default=0.0)
    for label in "abcd":
        assert abs(found[label] - exact * present.get(label, 0.0)) <= 0.5 + 1e-6
    if present:
        assert any(found[label] == labels.count(label) for label in present)


# ---- what is known of a task ----------------------------------------------------------------------------

PAIRS = [(text, LABELS[row % 2]) for row, text in enumerate(TEXTS)] + [("fine !", "positive")]


def test_the_reference_of_real_samples():
    reference = Reference.of(PAIRS, LABELS, ["Is it positive?"], embed=lambda texts: np.ones((len(texts), 4)))
    assert reference.min_words == 1
    assert reference.target == {"positive": pytest.approx(5 / 9), "negative": pytest.approx(4 / 9)}
    assert reference.center.tolist() == [1, 1, 1, 1]
    assert reference.training.overlap([TEXTS[0], "positive"]).tolist() == [1.0, 0.0]
    assert Reference.of([]).training.overlap(["a b c"]).tolist() == [0.0]
    assert Reference(choices=LABELS).target == {"positive": 0.5, "negative": 0.5}


def test_the_reference_keeps_no_text_of_the_data():
    secret = "the canary sings at midnight under the old bridge of stones"
    reference = Reference.of([(secret, f"{secret} and so on")] * 9, prompts=["describe it"])
    assert "canary" not in repr(reference)
    assert "canary" not in repr(vars(reference.training))


def test_memorization_looks_at_inputs_and_long_answers_and_not_at_labels():
    private = "my card number is nine one two three and the pin is four"
    training = Reference.of([(TEXTS[0], "positive"), (TEXTS[1], private)], LABELS).training
    some = [
        Candidate(TEXTS[0], "negative"),
        Candidate(TEXTS[2], private),
        Candidate(TEXTS[2], "positive"),
        Candidate("positive", "positive"),
        Candidate(TEXTS[2], "the pin is four"),
    ]
    verdicts = filters.memorization(some, training, 0.8)
    assert verdicts == [
        "1.00 of it stands in one training text",
        "1.00 of it stands in one training text",
        None,
        None,
        None,
    ]
    assert filters.memorization([], training, 0.8) == []
    assert kept(filters.memorization(some, training, 1.0)) == [0, 1, 2, 3, 4]


def test_a_short_answer_that_stands_once_in_the_data_is_dropped_and_a_common_one_is_not():
    answers = ["078-05-1120", "Paris, France", "Paris, France", "42", "Ann Lee", "in the year 1789"]
    training = Reference.of([(f"question {k} of all", answer) for k, answer in enumerate(answers)]).training
    asked = ["078 05 1120.", "paris france", "42", "Ann Lee", "In the year 1789", "in the year 1790"]
    some = [Candidate(f"a question of mine {k}", answer) for k, answer in enumerate(asked)]
    assert kept(filters.memorization(some, training, 0.8)) == [1, 2, 3, 5]
    assert kept(filters.memorization([Candidate("078-05-1120", "an answer")], training, 0.8)) == []
    labels = Reference.of([(f"question {k} of all", answer) for k, answer in enumerate(answers)], answers[:3]).training
    assert kept(filters.memorization(some[:2], labels, 0.8)) == [0, 1], "a label is no secret"


# ---- in a row -------------------------------------------------------------------------------------------


def candidates() -> list[Candidate]:
    return [
        Candidate(TEXTS[0], "positive", 10.0, 0.9, 1.0),
        Candidate("", "positive", 10.0, 0.9, 1.0),
        Candidate("23.4", "negative", 10.0, 0.9, 1.0),
        Candidate("my secret training text is this one", "negative", 10.0, 0.9, 1.0),
        Candidate(TEXTS[1], "negative", 10.0, 0.3, 1.0),
        Candidate(TEXTS[2], "negative", 400.0, 0.9, 1.0),
        Candidate(TEXTS[3], "negative", 10.0, 0.9, 0.2),
        Candidate(TEXTS[0], "positive", 10.0, 0.8, 1.0),
        Candidate(TEXTS[4], "positive", 10.0, 0.7, 1.0),
        Candidate(TEXTS[5], "negative", 10.0, 0.7, 1.0),
    ]


REFERENCE = Reference.of([("my secret training text is this one", "negative")], LABELS)
ALL = FiltersConfig(self_consistency=0.6, similarity="jaccard", balance=True)


def test_every_filter_says_what_it_dropped():
    reference = Reference(choices=LABELS, training=REFERENCE.training)
    funnel = filter_candidates(candidates(), ALL, reference, seed=3)
    assert funnel.dropped == {
        "heuristics": 2,
        "memorization": 1,
        "consistency": 1,
        "perplexity": 1,
        "self_consistency": 1,
        "diversity": 1,
        "balance": 1,
    }
    assert list(funnel.dropped) == [name for name in ALONE + TOGETHER if name != "keep_ratio"]
    assert funnel.reasons[1:8] == [
        "heuristics: empty input",
        "heuristics: too few words",
        "memorization: 1.00 of it stands in one training text",
        "consistency: 0.3 is not above 0.5",
        "perplexity: 400 is not below 100",
        "self_consistency: 0.2 of the votes is less than 0.6",
        "diversity: similarity 1.00 to a kept one is above 0.9",
    ]
    assert funnel.kept in ([0, 9], [8, 9])
    assert [one.answer for one in funnel.survivors] == ["positive", "negative"]
    assert funnel.faults == {"empty input": 1, "too few words": 1}


def test_filters_that_are_off_do_not_run():
    funnel = filter_candidates(candidates(), config(), REFERENCE)
    assert funnel.dropped == {}
    assert funnel.kept == list(range(10))
    assert funnel.reasons == [None] * 10
    assert filter_candidates(candidates(), config(memorization=0.8), Reference()).dropped == {}
    assert filter_candidates(candidates(), config(consistency=0.0), Reference()).dropped == {"consistency": 0}


@pytest.mark.parametrize("name", [*ALONE, *TOGETHER])
def test_each_filter_runs_alone(name):
    on = {"heuristics": True, "memorization": 0.8, "perplexity": 100.0, "consistency": 0.5, "self_consistency": 0.6}
    on |= {"keep_ratio": 0.5, "diversity": 0.9, "balance": True}
    funnel = filter_candidates(candidates(), config(**{name: on[name]}, similarity="minhash"), REFERENCE)
    assert list(funnel.dropped) == [name]
    assert 0 < funnel.dropped[name] < 10
    assert len(funnel.kept) == 10 - funnel.dropped[name]
    assert filter_candidates([], config(**{name: on[name]}), REFERENCE).dropped == {name: 0}


def test_rounds_alone_and_then_all_together_equal_one_pass():
    whole = filter_candidates(candidates(), ALL, REFERENCE, seed=3)
    rounds = [filter_candidates(candidates()[half], ALL, REFERENCE, only=ALONE) for half in (slice(6), slice(6, 10))]
    pool = [one for funnel in rounds for one in funnel.survivors]
    last = filter_candidates(pool, ALL, REFERENCE, only=TOGETHER, seed=3)
    assert last.survivors == whole.survivors
    assert Counter(rounds[0].dropped) + Counter(rounds[1].dropped) + Counter(last.dropped) == Counter(whole.dropped)


def test_forward_passes_are_asked_for_late_and_once():
    asked = []
    some = candidates()
    for one in some:
        one.perplexity = one.consistency = one.votes = None

    def numbers(left):
        return [next(row for row, other in enumerate(some) if other is one) for one in left]

    def score(left):
        asked.append(("score", numbers(left)))
        for one in left:
            one.perplexity, one.consistency = 10.0, 0.4 if one is some[4] else 0.9

    def vote(left):
        asked.append(("vote", numbers(left)))
        for one in left:
            one.votes = 1.0

    def embed(texts):
        asked.append(("embed", texts))
        return np.eye(len(texts))

    funnel = filter_candidates(
        some, FiltersConfig(self_consistency=0.5), REFERENCE, score=score, vote=vote, embed=embed
    )
    left = [0, 5, 6, 7, 8, 9]
    assert [call for call in asked if call[0] != "embed"] == [("score", [0, 4, 5, 6, 7, 8, 9]), ("vote", left)]
    assert asked[2] == ("embed", [some[row].input for row in left])
    assert funnel.kept == left


def test_stricter_counts_the_stages_since_the_task_was_learned():
    some = scored((0.6, 60.0))
    for k, left in ((0, 1), (1, 1), (2, 0)):
        strict = config(consistency=0.5, stricter=True)
        assert len(filter_candidates(some, strict, Reference(), stages_since=k).kept) == left
    assert filter_candidates(some, config(perplexity=100.0, stricter=True), Reference(), stages_since=7).dropped == {
        "perplexity": 1
    }
    assert filter_candidates(some, config(perplexity=100.0), Reference(), stages_since=7).kept == [0]


def test_fewest_words_of_the_configuration_win():
    some = [Candidate("Ok lor.", "ham")]
    assert filter_candidates(some, config(heuristics=True), Reference()).dropped == {"heuristics": 1}
    assert filter_candidates(some, config(heuristics=True), Reference(min_words=2)).dropped == {"heuristics": 0}
    assert filter_candidates(some, config(heuristics=True, min_words=4), Reference(min_words=2)).kept == []


def test_balance_needs_a_label_set_and_says_so_before_anything_else():
    with pytest.raises(InputError, match=r"filters.balance: the task has no label set"):
        filter_candidates(candidates(), FiltersConfig(balance=True), Reference(), score=lambda left: 1 / 0)


def test_the_penalty_form_takes_the_keep_ratio_over():
    penalty = config(diversity=0.9, diversity_form="penalty", similarity="jaccard", keep_ratio=0.5)
    assert filter_candidates(candidates(), penalty, Reference()).dropped == {"diversity": 5}


def test_the_same_seed_keeps_the_same():
    many = [Candidate(f"{TEXTS[row % 8]} {row}", LABELS[row % 5 == 0]) for row in range(60)]
    runs = [filter_candidates(many, config(balance=True), Reference(choices=LABELS), seed=seed) for seed in (1, 1, 2)]
    assert runs[0].kept == runs[1].kept != runs[2].kept
    filter_candidates(many, config(balance=True), Reference(choices=LABELS), seed=(1, 2, 3))


def test_hostile_candidates_are_dropped_quickly():
    hostile = ["spam " * 20_000, "a" * 100_000, "\x00" * 1000, "\ud800 x", "<script>" * 1000, "", "\u202e" * 50, "\n"]
    some = [Candidate(text, answer) for text in hostile for answer in (text, "positive")] + candidates()[:1]
    started = time.perf_counter()
    unscored = FiltersConfig(perplexity=None, consistency=None, similarity="rouge")
    funnel = filter_candidates(some, unscored, Reference.of(PAIRS))
    assert funnel.kept == [16] or funnel.reasons[16].startswith("memorization")
    assert all(funnel.reasons[:16])
    alone = {"heuristics": False, "perplexity": None, "consistency": None}
    for similarity in ("minhash", "jaccard", "rouge"):
        for form in ("cap", "penalty"):
            filter_candidates(some, FiltersConfig(**alone, similarity=similarity, diversity_form=form), REFERENCE)
    assert time.perf_counter() - started < 30.0


# ---- the account ----------------------------------------------------------------------------------------


def test_the_account_names_filters_figures_and_what_to_change():
    dropped = {"heuristics": 150, "consistency": 0, "perplexity": 330}
    said = explain(dropped, 500, FiltersConfig(), {"repetition": 90, "echo": 60})
    assert said == (
        "20 of 500 candidates were kept (4.0%): perplexity (100) dropped 330, heuristics (repetition 90, echo 60) "
        "dropped 150. To keep more, raise filters.perplexity."
    )


def test_the_account_at_the_edges():
    assert "perplexity dropped 3" in explain({"perplexity": 3}, 7, FiltersConfig(perplexity="auto"), {})
    assert explain({}, 0, FiltersConfig(), {}) == "no candidate was generated"
    assert explain({"perplexity": 0}, 7, FiltersConfig(), {}) == "7 of 7 candidates were kept (100.0%)."


@pytest.mark.parametrize("name", [*ALONE, *TOGETHER])
def test_every_filter_has_advice(name):
    on = FiltersConfig(self_consistency=0.6, keep_ratio=0.7, balance=True)
    said = explain({name: 9}, 10, on, {})
    assert said.startswith("1 of 10 candidates were kept (10.0%): ")
    assert any(f"{section}.{key}" in said for section, key in ((s, k) for s in ("filters",) for k in vars(on)))


def test_verdicts_must_be_as_many_as_survivors():
    with pytest.raises(ValueError):
        Funnel(candidates()).apply("heuristics", [None])
