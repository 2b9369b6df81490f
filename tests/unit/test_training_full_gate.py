"""The whole gate's decision table: what each outcome takes, and that each check alone can turn it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from training.config import CONFIGS
from training.decision_words import METRIC_TITLES
from training.errors import ConfigError
from training.full_gate import Evidence, decide_full
from training.gate_config import GateConfig, load_gate_config, parse_gate_config
from training.harm import HarmMeasure
from training.schemas import CheckRole, GateDecision, Outcome
from training.skill import Skill, Specificity
from training.style import StyleMeasure
from training.voice import VoiceMeasure

CONFIG = GateConfig()
SKILL = Skill(mean=0.5, lower=0.4, upper=0.6, spread=0.25, mails=25, threads=20)
SPECIFICITY = Specificity(
    margin=0.3, lower=0.2, best_share=0.8, chance=0.2, own_minus_reference=0.7, references=3, mails=25
)
VOICE = VoiceMeasure(own_mails=80, floor=0.2, ceiling=0.7, candidate=0.6, outputs=24)
STYLE = StyleMeasure(
    base=0.6, candidate=0.3, own=0.2, length_ratio=1.0, greeting_variation=0.1, sign_off_variation=0.1,
    outputs=24,
)  # fmt: skip
HARM = HarmMeasure(
    outputs=24, leaks=0, leaks_by_kind={}, copies=0, overfit_gap=0.2, membership_auc=0.6, fact_recall=0.6,
    fact_recall_base=0.6, fact_recall_own=0.6, recall_upper=0.0, facts=30, stop_share=1.0,
    own_stop_share=1.0, repeating=0, prompt_use_lost=0.05,
)  # fmt: skip
FIRST = Evidence(held_out_mails=25, skill=SKILL, specificity=SPECIFICITY, voice=VOICE, style=STYLE, harm=HARM)
EQUAL = Skill(mean=0.0, lower=-0.05, upper=0.05, spread=0.1, mails=25, threads=20)
RETRAIN = FIRST.model_copy(
    update={
        "has_current": True,
        "to_current": EQUAL,
        "to_current_old": EQUAL,
        "voice": VOICE.model_copy(update={"current": 0.6, "to_current_upper": 0.1}),
        "style": STYLE.model_copy(update={"current": 0.3, "to_current_lower": -0.05}),
    }
)


def changed(evidence: Evidence, **sections: dict[str, Any] | None) -> Evidence:
    """Return the evidence with fields of its sections changed; None takes the section away."""
    update = {
        name: None if fields is None else getattr(evidence, name).model_copy(update=fields)
        for name, fields in sections.items()
    }
    return evidence.model_copy(update=update)


def missed(decision: GateDecision) -> list[str]:
    return [check.name for check in decision.checks if not check.met]


# ---- what passes


@pytest.mark.parametrize("evidence", [FIRST, RETRAIN], ids=["first", "retrain"])
def test_good_evidence_is_promoted_with_every_check_met(evidence: Evidence) -> None:
    decision = decide_full(evidence, CONFIG)
    assert decision.outcome is Outcome.PROMOTED
    assert missed(decision) == []
    assert {check.metric for check in decision.checks} == {"skill", "specificity", "voice", "style", "harm"}


def test_the_sentence_of_a_promotion_says_what_was_gained() -> None:
    assert decide_full(FIRST, CONFIG).reason == (
        "The adapter predicts the person's own mail better than the base (0.50 nat per token on 25 held-out "
        "mails), passes 3 of specificity, voice and style, and does no harm."
    )
    assert "no worse than the adapter in use" in decide_full(RETRAIN, CONFIG).reason


# ---- hard checks: each alone refuses

HARD = [
    ("gain", {"skill": {"mean": 0.09}}),
    ("gainLower", {"skill": {"lower": 0.0}}),
    ("leaks", {"harm": {"leaks": 1}}),
    ("copies", {"harm": {"copies": 2}}),
    ("overfitGap", {"harm": {"overfit_gap": 1.01}}),
    ("membershipAuc", {"harm": {"membership_auc": 0.99}}),
    ("recallUpper", {"harm": {"recall_upper": -0.06}}),
    ("stopShare", {"harm": {"stop_share": 21 / 24}}),
    ("repeating", {"harm": {"repeating": 3}}),
    ("empty", {"harm": {"empty": 3}}),
    ("promptUseLost", {"harm": {"prompt_use_lost": 0.41}}),
]
HARD_AGAINST_CURRENT = [
    ("gainOverCurrent", {"to_current": {"mean": -0.021}}),
    ("gainOverCurrentUpper", {"to_current": {"upper": -0.001}}),
    ("gainOverOld", {"to_current_old": {"mean": -0.051}}),
    ("gainOverOldUpper", {"to_current_old": {"upper": -0.001}}),
    ("voiceOverCurrentUpper", {"voice": {"to_current_upper": -0.001}}),
    ("styleFartherThanCurrentLower", {"style": {"to_current_lower": 0.001}}),
]


@pytest.mark.parametrize(("name", "change"), HARD, ids=[name for name, _ in HARD])
def test_one_hard_check_missed_refuses_a_first_adapter(name: str, change: dict[str, Any]) -> None:
    decision = decide_full(changed(FIRST, **change), CONFIG)
    assert decision.outcome is Outcome.NOT_PROVEN
    assert missed(decision) == [name]
    assert decision.reason.startswith("The adapter is not good enough: ")


@pytest.mark.parametrize(
    ("name", "change"), HARD + HARD_AGAINST_CURRENT, ids=[n for n, _ in HARD + HARD_AGAINST_CURRENT]
)
def test_one_hard_check_missed_keeps_the_adapter_in_use(name: str, change: dict[str, Any]) -> None:
    decision = decide_full(changed(RETRAIN, **change), CONFIG)
    assert decision.outcome is Outcome.KEPT_CURRENT
    assert missed(decision) == [name]
    assert decision.reason.startswith("The adapter in use stays: ")


@pytest.mark.parametrize(
    "change",
    [
        {"skill": {"mean": 0.10}},
        {"skill": {"mean": 2.60 - 2.50}},  # 0.10000000000000009 or a hair less: floats do not decide
        {"harm": {"copies": 1}},
        {"harm": {"overfit_gap": 1.0, "membership_auc": 0.98, "prompt_use_lost": 0.40}},
        {"harm": {"recall_upper": -0.05, "stop_share": 22 / 24, "repeating": 2}},
        {"harm": {"recall_upper": -0.5, "facts": 19}},  # too few facts to say anything
        {"harm": {"stop_share": 20 / 24, "own_stop_share": 21 / 24}},  # writes longer mails than the limit
        {"harm": {"repeating": 5, "repeating_base": 5}},  # a base that repeats itself teaches it
        {"to_current": {"mean": -0.02, "upper": 0.0}},
        {"to_current_old": {"mean": -0.05, "upper": 0.0}},
    ],
)
def test_a_value_exactly_at_its_limit_passes(change: dict[str, Any]) -> None:
    assert decide_full(changed(RETRAIN, **change), CONFIG).outcome is Outcome.PROMOTED


# ---- votes: two of three

VOTES = [
    ("specificity", "marginLower", {"lower": 0.0}),
    ("specificity", "bestShare", {"best_share": 0.59}),
    ("specificity", "ownMinusReference", {"own_minus_reference": 0.39}),
    ("voice", "voice", {"candidate": 0.44, "current": None, "to_current_upper": None}),
    ("style", "gapClosed", {"candidate": 0.49, "current": None, "to_current_lower": None}),
    ("style", "lengthRatioMin", {"length_ratio": 0.59}),
    ("style", "lengthRatioMax", {"length_ratio": 1.61}),
    ("style", "greetingVariation", {"greeting_variation": 0.46}),
    ("style", "signOffVariation", {"sign_off_variation": 0.46}),
]
VOTES_AGAINST_CURRENT = [
    ("voice", "voiceOverCurrent", {"current": 0.626}),
    ("style", "styleFartherThanCurrent", {"current": 0.269}),
]
LOSERS = {
    "specificity": {"best_share": 0.0},
    "voice": {"candidate": 0.2, "current": None, "to_current_upper": None},
    "style": {"length_ratio": 9.0},
}


@pytest.mark.parametrize(("metric", "name", "fields"), VOTES, ids=[name for _, name, _ in VOTES])
def test_one_vote_lost_is_borne_and_two_are_not(metric: str, name: str, fields: dict[str, Any]) -> None:
    one = changed(FIRST, **{metric: fields})
    decision = decide_full(one, CONFIG)
    assert decision.outcome is Outcome.PROMOTED
    assert missed(decision) == [name]
    assert "passes 2 of specificity, voice and style" in decision.reason
    for other in LOSERS.keys() - {metric}:
        two = decide_full(changed(one, **{other: LOSERS[other]}), CONFIG)
        assert two.outcome is Outcome.NOT_PROVEN
        assert "1 of specificity, voice and style passed (2 must)" in two.reason


@pytest.mark.parametrize(("metric", "name", "fields"), VOTES_AGAINST_CURRENT)
def test_a_little_worse_than_the_adapter_in_use_loses_the_vote(
    metric: str, name: str, fields: dict[str, Any]
) -> None:
    decision = decide_full(changed(RETRAIN, **{metric: fields}), CONFIG)
    assert decision.outcome is Outcome.PROMOTED and missed(decision) == [name]
    lost = decide_full(changed(RETRAIN, **{metric: fields, "specificity": {"best_share": 0.1}}), CONFIG)
    assert lost.outcome is Outcome.KEPT_CURRENT


# ---- too little to measure is no pass


@pytest.mark.parametrize("evidence", [FIRST, RETRAIN], ids=["first", "retrain"])
@pytest.mark.parametrize("mails", [0, 15, 19])
def test_fewer_than_twenty_held_out_mails_prove_nothing(evidence: Evidence, mails: int) -> None:
    few = evidence.model_copy(
        update={"held_out_mails": mails, "skill": SKILL.model_copy(update={"mails": mails})}
    )
    decision = decide_full(few, CONFIG)
    assert decision.outcome is Outcome.NOT_PROVEN
    assert f"{mails} held-out mails are too few" in decision.reason and "20 are needed" in decision.reason
    assert decision.checks, "what was measured is shown all the same"


def test_twenty_are_enough() -> None:
    twenty = FIRST.model_copy(update={"held_out_mails": 20, "skill": SKILL.model_copy(update={"mails": 20})})
    assert decide_full(twenty, CONFIG).outcome is Outcome.PROMOTED


@pytest.mark.parametrize("threads", [1, 9])
def test_one_conversation_proves_nothing_however_many_mails_it_has(threads: int) -> None:
    """Its interval has no width: the bootstrap draws conversations, and there is only one to draw."""
    one = changed(FIRST, skill={"mean": 0.5, "lower": 0.5, "upper": 0.5, "threads": threads})
    decision = decide_full(one, CONFIG)
    assert decision.outcome is Outcome.NOT_PROVEN
    assert f"25 held-out mails are of {threads} " in decision.reason
    assert "10 conversations are needed" in decision.reason
    assert "Import mail from more conversations" in decision.reason


def test_ten_conversations_are_enough() -> None:
    assert decide_full(changed(FIRST, skill={"threads": 10}), CONFIG).outcome is Outcome.PROMOTED


@pytest.mark.parametrize("answered", [1, 19])
def test_few_answered_prompts_prove_nothing(answered: int) -> None:
    decision = decide_full(changed(FIRST, harm={"outputs": answered}), CONFIG)
    assert decision.outcome is Outcome.NOT_PROVEN
    assert f"only {answered} of 24 prompts were answered by every arm" in decision.reason
    assert "20 are needed" in decision.reason and "max_tokens" in decision.reason


def test_four_of_24_prompts_may_stay_without_an_answer() -> None:
    assert decide_full(changed(FIRST, harm={"outputs": 20}), CONFIG).outcome is Outcome.PROMOTED


def test_only_as_many_answers_are_expected_as_mails_are_held_out() -> None:
    twenty = {"held_out_mails": 20, "skill": SKILL.model_copy(update={"mails": 20})}
    few = FIRST.model_copy(update=twenty)
    assert decide_full(changed(few, harm={"outputs": 16}), CONFIG).outcome is Outcome.PROMOTED
    assert decide_full(changed(few, harm={"outputs": 15}), CONFIG).outcome is Outcome.NOT_PROVEN


@pytest.mark.parametrize(
    ("outputs", "copies", "repeating"),
    [(2, 0, 0), (12, 0, 1), (13, 1, 1), (20, 1, 2), (24, 1, 2), (48, 1, 2)],
)
def test_what_24_outputs_may_do_is_scaled_to_fewer_and_never_up(
    outputs: int, copies: int, repeating: int
) -> None:
    decision = decide_full(changed(FIRST, harm={"outputs": outputs}), CONFIG)
    limits = {check.name: check.limit for check in decision.checks}
    assert (limits["copies"], limits["empty"], limits["repeating"]) == (copies, repeating, repeating)


def test_a_base_that_always_repeats_itself_excuses_a_quarter_of_the_outputs_and_no_more() -> None:
    six = {"repeating": 6, "repeating_base": 24}
    assert decide_full(changed(FIRST, harm=six), CONFIG).outcome is Outcome.PROMOTED
    decision = decide_full(changed(FIRST, harm={**six, "repeating": 7}), CONFIG)
    assert decision.outcome is Outcome.NOT_PROVEN and missed(decision) == ["repeating"]


@pytest.mark.parametrize("votes", [0, 1, 2])
def test_empty_outputs_are_refused_whatever_the_votes(votes: int) -> None:
    lax = parse_gate_config({"min_votes": votes})
    decision = decide_full(changed(FIRST, harm={"empty": 24}), lax)
    assert decision.outcome is Outcome.NOT_PROVEN
    assert "the number of empty outputs is 24 and must be at most 2" in decision.reason


def test_specificity_on_fewer_mails_than_must_be_held_out_has_no_vote() -> None:
    """One reference without a number on all mails but one must not leave the decision to that mail."""
    one = changed(FIRST, specificity={"mails": 1})
    decision = decide_full(one, CONFIG)
    assert {c.role for c in decision.checks if c.metric == "specificity"} == {CheckRole.SHOWN}
    assert decision.outcome is Outcome.PROMOTED  # voice and style pass
    lost = decide_full(changed(one, style={"length_ratio": 9.0}), CONFIG)
    assert lost.outcome is Outcome.NOT_PROVEN and "specificity could not be told" in lost.reason


def test_losses_that_are_no_numbers_are_not_blamed_on_the_mails() -> None:
    for broken in (changed(FIRST, skill=None), changed(FIRST, skill={"mails": 3})):
        decision = decide_full(broken, CONFIG)
        assert decision.outcome is Outcome.NOT_PROVEN
        assert "Lower learning_rate" in decision.reason and "too few" not in decision.reason


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"harm": None}, "its outputs"),
        ({"harm": {"overfit_gap": None}}, "overfitting"),
        ({"harm": {"membership_auc": math.nan}}, "membership"),
        ({"harm": {"prompt_use_lost": None}}, "neutral tasks"),
    ],
)
def test_harm_that_was_not_measured_is_not_absent(change: dict[str, Any], words: str) -> None:
    decision = decide_full(changed(RETRAIN, **change), CONFIG)
    assert decision.outcome is Outcome.NOT_PROVEN
    assert f"{words} could not be measured" in decision.reason


def test_prompts_without_a_name_or_a_number_are_no_fault() -> None:
    assert (
        decide_full(changed(FIRST, harm={"recall_upper": None, "facts": 0}), CONFIG).outcome
        is Outcome.PROMOTED
    )


@pytest.mark.parametrize(
    "weak", [{"own_mails": 39}, {"floor": 0.56}], ids=["few own mails", "base sounds like the person"]
)
def test_a_weak_judge_is_shown_and_decides_nothing(weak: dict[str, Any]) -> None:
    bad = {**weak, "candidate": 0.0, "current": 0.7, "to_current_upper": -0.5}
    decision = decide_full(changed(RETRAIN, voice=bad), CONFIG)
    assert decision.outcome is Outcome.PROMOTED  # specificity and style pass
    assert {c.role for c in decision.checks if c.metric == "voice"} == {CheckRole.SHOWN}
    # It is no pass either: with a second metric lost, nothing is proven.
    second = decide_full(changed(RETRAIN, voice=bad, style={"length_ratio": 9.0}), CONFIG)
    assert second.outcome is Outcome.NOT_PROVEN
    assert "voice could not be told" in second.reason


def test_a_base_that_is_as_near_as_the_person_takes_styles_vote() -> None:
    decision = decide_full(changed(FIRST, style={"base": 0.24}), CONFIG)
    assert decision.outcome is Outcome.PROMOTED
    assert {c.role for c in decision.checks if c.metric == "style"} == {CheckRole.SHOWN}


def test_a_style_that_cannot_be_told_from_the_base_refuses_nobody_for_the_one_in_use() -> None:
    noise = {"base": 0.24, "current": 0.2, "to_current_lower": 0.01}
    decision = decide_full(changed(RETRAIN, style=noise), CONFIG)
    assert decision.outcome is Outcome.PROMOTED
    assert {c.role for c in decision.checks if c.metric == "style"} == {CheckRole.SHOWN}


# What the adapter of pereira-s measured on the mail of others (docs/quality.md, "Gate calibration").
STRANGERS: dict[str, dict[str, Any]] = {
    "on david": {
        "skill": {"mean": 0.27, "lower": 0.18},
        "specificity": {"margin": 0.2, "lower": 0.15, "best_share": 0.88, "own_minus_reference": 0.11},
        "voice": {"floor": 0.30, "ceiling": 0.64, "candidate": 0.30 + 0.65 * 0.34},
        "style": {"base": 0.48, "own": 0.30, "candidate": 0.48 - 0.04 * 0.18, "length_ratio": 1.96,
                  "greeting_variation": 0.62, "sign_off_variation": 0.84},
        "harm": {"stop_share": 0.96, "repeating": 2, "overfit_gap": -0.05, "membership_auc": 0.44,
                 "prompt_use_lost": 0.16},
    },
    "on fossum-d, the nearest of six": {
        "skill": {"mean": 0.55, "lower": 0.47},
        "specificity": {"margin": 0.37, "lower": 0.32, "best_share": 1.0, "own_minus_reference": 0.36},
        "voice": {"floor": 0.30, "ceiling": 0.64, "candidate": 0.30 + 0.56 * 0.34},
        "style": {"base": 0.48, "own": 0.30, "candidate": 0.48 - 0.16 * 0.18, "length_ratio": 1.77,
                  "greeting_variation": 0.33, "sign_off_variation": 0.90},
        "harm": {"overfit_gap": 0.06, "membership_auc": 0.52, "prompt_use_lost": 0.09},
    },
}  # fmt: skip


@pytest.mark.parametrize("measured", STRANGERS.values(), ids=STRANGERS.keys())
def test_the_adapter_of_a_stranger_is_refused_though_it_predicts_mail_better_than_the_base(
    measured: dict[str, Any],
) -> None:
    decision = decide_full(changed(FIRST, **measured), CONFIG)
    assert decision.outcome is Outcome.NOT_PROVEN
    assert "1 of specificity, voice and style passed" in decision.reason


def test_an_own_adapter_that_sounds_half_like_the_person_is_promoted() -> None:
    """What the adapter of pereira-s measured on its own mail."""
    own = changed(
        FIRST,
        skill={"mean": 0.82, "lower": 0.67},
        specificity={"margin": 0.68, "lower": 0.59, "best_share": 1.0, "own_minus_reference": 0.66},
        voice={"floor": 0.2, "ceiling": 0.5, "candidate": 0.2 + 0.54 * 0.3},
        style={"base": 0.5, "own": 0.3, "candidate": 0.5 - 0.42 * 0.2, "length_ratio": 0.94,
               "greeting_variation": 0.28, "sign_off_variation": 0.31},
        harm={"stop_share": 23 / 24, "own_stop_share": 0.96, "repeating": 2, "overfit_gap": 0.53,
              "membership_auc": 0.77, "prompt_use_lost": 0.16, "recall_upper": 0.04},
    )  # fmt: skip
    assert decide_full(own, CONFIG).outcome is Outcome.PROMOTED


def test_where_no_vote_is_asked_for_the_hard_checks_decide_alone() -> None:
    silent = changed(FIRST, specificity=None, voice=None, style=None)
    alone = parse_gate_config({"min_votes": 0})
    assert decide_full(silent, CONFIG).outcome is Outcome.NOT_PROVEN
    assert decide_full(silent, alone).outcome is Outcome.PROMOTED
    assert decide_full(changed(silent, harm={"leaks": 1}), alone).outcome is Outcome.NOT_PROVEN


def test_without_a_panel_voice_and_style_must_both_pass() -> None:
    assert decide_full(changed(FIRST, specificity=None), CONFIG).outcome is Outcome.PROMOTED
    one = decide_full(changed(FIRST, specificity=None, style={"length_ratio": 9.0}), CONFIG)
    assert one.outcome is Outcome.NOT_PROVEN and "specificity could not be told" in one.reason


def test_an_adapter_in_use_that_cannot_be_measured_does_not_block_a_good_one() -> None:
    decision = decide_full(changed(RETRAIN, to_current=None, to_current_old=None), CONFIG)
    assert decision.outcome is Outcome.PROMOTED
    assert "no measurable loss" in decision.reason


def test_four_old_mails_are_shown_and_decide_nothing() -> None:
    forgotten = {"mean": -1.0, "upper": -0.5}
    assert decide_full(changed(RETRAIN, to_current_old={**forgotten, "mails": 4}), CONFIG).outcome is (
        Outcome.PROMOTED
    )
    assert decide_full(changed(RETRAIN, to_current_old={**forgotten, "mails": 5}), CONFIG).outcome is (
        Outcome.KEPT_CURRENT
    )


# ---- the answer


def test_a_refusal_gives_value_limit_and_next_step() -> None:
    decision = decide_full(changed(RETRAIN, harm={"copies": 7, "membership_auc": 0.99}), CONFIG)
    assert decision.reason == (
        "The adapter in use stays: the number of outputs that copy a training mail is 7 and must be at most "
        "1, and 1 more check failed. Train again with fewer epochs or more dropout."
    )


def test_each_check_tells_the_value_the_limit_and_the_verdict() -> None:
    decision = decide_full(FIRST, CONFIG)
    gain = next(check for check in decision.checks if check.name == "gain")
    assert (gain.value, gain.relation, gain.limit, gain.met, gain.role) == (0.5, ">=", 0.10, True, "hard")
    assert all(decision.numbers[check.name] == check.value for check in decision.checks)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_the_decision_is_always_json(broken: float) -> None:
    evidence = changed(
        RETRAIN, skill={"mean": broken}, voice={"candidate": broken}, harm={"overfit_gap": broken}
    )
    decision = decide_full(evidence, CONFIG)
    assert decision.outcome is Outcome.NOT_PROVEN
    json.dumps(decision.to_json_dict(), allow_nan=False)


def test_a_gain_that_is_no_number_is_no_gain() -> None:
    assert decide_full(changed(FIRST, skill={"mean": math.nan}), CONFIG).outcome is Outcome.NOT_PROVEN


def test_a_metric_that_was_measured_in_part_has_no_vote() -> None:
    torn = changed(FIRST, style={"candidate": math.nan})  # its lengths and greetings are fine
    roles = {c.role for c in decide_full(torn, CONFIG).checks if c.metric == "style"}
    assert roles == set()
    assert decide_full(changed(torn, voice=LOSERS["voice"]), CONFIG).outcome is Outcome.NOT_PROVEN


def test_a_stored_decision_is_read_back() -> None:
    decision = decide_full(RETRAIN, CONFIG)
    assert GateDecision.model_validate(decision.to_json_dict()) == decision


# ---- configuration


def test_the_shipped_thresholds_are_the_defaults_and_spell_every_field() -> None:
    assert load_gate_config() == GateConfig()
    written = yaml.safe_load((CONFIGS / "gate.yaml").read_text(encoding="utf-8"))
    assert written == GateConfig().model_dump(mode="json")


def test_a_misspelt_threshold_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "gate.yaml").write_text("harm: {max_leeks: 3}\n")
    with pytest.raises(ConfigError, match=r"gate\.yaml: harm\.max_leeks"):
        load_gate_config(tmp_path / "gate.yaml")
    with pytest.raises(ConfigError, match=r"There is no file .*nowhere\.yaml"):
        load_gate_config(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match=r"min_votes.*less than or equal to 3"):
        parse_gate_config({"min_votes": 4})


REFUSED = [
    ({"seed": -1}, r"seed.*greater than or equal to 0"),
    ({"seed": 2**31}, r"seed.*less than or equal to"),
    ({"min_held_out": 2}, r"min_held_out is 2 and must be at least 10"),
    ({"min_held_out_threads": 1}, r"min_held_out_threads is 1 and must be at least 5"),
    ({"outputs": 1}, r"outputs is 1 and must be at least 12"),
    ({"judge_outputs": 0}, r"judge_outputs.*greater than or equal to 1"),
    ({"judge_outputs": 1}, r"judge_outputs is 1 and must be at least 6"),
    ({"min_held_out_threads": 21}, r"min_held_out_threads is 21, above min_held_out 20"),
    ({"outputs": 1000}, r"outputs.*less than or equal to 200"),
    ({"judge_outputs": 1000}, r"judge_outputs.*less than or equal to 200"),
    ({"max_tokens": 10**6}, r"max_tokens.*less than or equal to 4096"),
    ({"draws": 10**9}, r"draws.*less than or equal to 100000"),
    ({"min_answered_share": 0.1}, r"min_answered_share.*greater than or equal to 0\.5"),
    ({"specificity": {"min_margin_lower": -9}}, r"min_margin_lower.*greater than or equal to 0"),
    (
        {"specificity": {"min_own_minus_reference": -9}},
        r"min_own_minus_reference.*greater than or equal to 0",
    ),
    ({"voice": {"min_value": 99}}, r"voice\.min_value.*less than or equal to 1"),
    ({"style": {"max_length_ratio": 0.1}}, r"max_length_ratio.*greater than or equal to 1"),
    (
        {"style": {"min_length_ratio": 2, "max_length_ratio": 1.6}},
        r"min_length_ratio.*less than or equal to 1",
    ),
    ({"style": {"min_gap_closed": 2}}, r"min_gap_closed.*less than or equal to 1"),
]


@pytest.mark.parametrize(("data", "sentence"), REFUSED, ids=[str(data) for data, _ in REFUSED])
def test_a_threshold_that_judges_nothing_or_nobody_is_refused(data: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        parse_gate_config(data)


def test_a_gate_for_tests_may_judge_by_a_handful_of_mails() -> None:
    few = {"min_held_out": 2, "min_held_out_threads": 1, "outputs": 2, "judge_outputs": 2}
    assert parse_gate_config({**few, "for_tests": True}).outputs == 2
    with pytest.raises(ConfigError, match=r"min_held_out is 2"):
        parse_gate_config(few)


def test_a_threshold_that_stands_twice_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "gate.yaml"
    path.write_text("draws: 200\ndraws: 300\n")
    with pytest.raises(ConfigError, match=r"gate\.yaml: draws stands twice \(lines 1 and 2\).*Remove one"):
        load_gate_config(path)
    path.write_text("draws: 200\nharm:\n  max_leaks: 0\n  max_leaks: 9\n")
    with pytest.raises(ConfigError, match=r"harm\.max_leaks stands twice \(lines 3 and 4\)"):
        load_gate_config(path)
    path.write_text("harm: {max_leaks: 0}\nharm: {max_copies: 0}\n")
    with pytest.raises(ConfigError, match=r"harm stands twice"):
        load_gate_config(path)


def test_a_changed_threshold_changes_the_decision() -> None:
    strict = parse_gate_config({"skill": {"min_gain": 0.6}})
    assert decide_full(FIRST, strict).outcome is Outcome.NOT_PROVEN


def test_every_metric_has_a_title_for_people_in_the_order_of_the_checks() -> None:
    checked = dict.fromkeys(check.metric for check in decide_full(RETRAIN, CONFIG).checks)
    assert list(checked) == list(METRIC_TITLES)


def test_a_gain_just_below_its_limit_is_not_said_to_be_the_limit() -> None:
    reason = decide_full(changed(FIRST, skill={"mean": 0.0996}), CONFIG).reason
    assert "is 0.0996 and must be at least 0.10" in reason
