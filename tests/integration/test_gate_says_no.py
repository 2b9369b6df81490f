"""The gate on really trained adapters, with the thresholds as they are shipped: it can say yes, and no.

tests/gate_arms.py says who is judged on what and makes it; nothing here is a fake or a chosen number.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.adapters import smollm2_gguf
from tests.gate_arms import evidence, gate, make_all
from training.full_gate import decide_full
from training.schemas import CheckRole, GateDecision, Outcome

pytestmark = [
    pytest.mark.slow,
    # The first test of a session trains eight adapters and asks for 208 answers.
    pytest.mark.timeout(2 * 3600),
]


@pytest.fixture(scope="session")
def made(pytestconfig: pytest.Config, base_cache: Path) -> Path:
    """Folder of everything that is judged; what this same code made before is found again."""
    smollm2_gguf()  # skips where the base model is missing
    return make_all(pytestconfig.cache.mkdir("gate_arms"), base_cache)


def decide(name: str, made: Path, *, newest: int | None = None) -> GateDecision:
    return decide_full(evidence(name, made, newest=newest), gate())


def missed(decision: GateDecision, role: CheckRole = CheckRole.HARD) -> set[str]:
    return {check.name for check in decision.checks if check.role is role and not check.met}


def table(decision: GateDecision) -> str:
    """Return all numbers, for whoever has to find out why a test failed: no mail is in them."""
    lines = [
        f"{c.metric} {c.name} {c.value:.3f} {c.relation} {c.limit:g} {c.role}{'' if c.met else ' MISSED'}"
        for c in decision.checks
    ]
    return "\n".join([f"{decision.outcome}: {decision.reason}", *lines])


def test_a_good_adapter_is_promoted(made: Path) -> None:
    decision = decide("good", made)
    assert decision.outcome is Outcome.PROMOTED, table(decision)


def test_another_persons_adapter_is_refused(made: Path) -> None:
    """It was trained well and does no harm: it is somebody else's, and each of the three votes sees it."""
    decision = decide("stranger", made)
    assert decision.outcome is Outcome.NOT_PROVEN, table(decision)
    lost = {check.metric for check in decision.checks if check.role is CheckRole.VOTE and not check.met}
    assert lost == {"specificity", "voice", "style"}, table(decision)
    assert not {check.name for check in decision.checks if check.metric == "harm"} & missed(decision)


def test_an_adapter_trained_far_too_long_is_refused_for_copying_and_memorising(made: Path) -> None:
    """Voice and style are content: what it writes is the person's, a third of it word for word."""
    decision = decide("trained too long", made)
    assert decision.outcome is Outcome.NOT_PROVEN, table(decision)
    assert {"copies", "overfitGap", "membershipAuc"} <= missed(decision), table(decision)
    lost = {check.metric for check in decision.checks if check.role is CheckRole.VOTE and not check.met}
    assert not lost & {"voice", "style"}, table(decision)


def test_an_adapter_trained_on_shuffled_words_is_refused(made: Path) -> None:
    """Their words without their sentences: the loss on mail that makes sense does not fall by it."""
    decision = decide("shuffled words", made)
    assert decision.outcome is Outcome.NOT_PROVEN, table(decision)
    assert "gain" in missed(decision), table(decision)


def test_a_retrain_that_forgets_the_old_mail_keeps_the_adapter_in_use(made: Path) -> None:
    """It passes everything else and is far better than the adapter in use on the new mail."""
    decision = decide("forgetful", made)
    assert decision.outcome is Outcome.KEPT_CURRENT, table(decision)
    assert missed(decision) == {"gainOverOld", "gainOverOldUpper"}, table(decision)
    gain = next(check.value for check in decision.checks if check.name == "gainOverCurrent")
    assert gain > 0.5, table(decision)


def test_fifteen_held_out_mails_prove_nothing_however_good_the_adapter(made: Path) -> None:
    decision = decide("good", made, newest=15)
    assert decision.outcome is Outcome.NOT_PROVEN, table(decision)
    assert "15 held-out mails are too few" in decision.reason
