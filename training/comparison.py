"""Versions of one person's adapter beside the base: the prompts, the answers, and how near they come.

The prompts are fixed and made from nobody's mail; the scores are metrics 3 and 4 of the gate, measured anew
on the answers that are shown. They do not decide anything: the gate asks other prompts, from held-out mail.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from training.dataset import NEUTRAL_INSTRUCTIONS
from training.errors import ConfigError
from training.gate_config import GateConfig
from training.salutation import learn_names
from training.schemas import Example, GateDecision, Generated, Outcome, Schema
from training.style import measure_style
from training.voice import fit_judge, measure_voice

COMPARED_INSTRUCTIONS = (
    *NEUTRAL_INSTRUCTIONS,
    "Write an email about: the invoice is late",
    "Write an email about: I will be away next week",
    "Write a reply to the email below.\n\nHello,\n\ncould you send me the notes of our last meeting? "
    "I would need them by Friday.\n\nKind regards,\nSam",
    "Write a reply to the email below.\n\nHi,\n\nwe would be glad to see you at the dinner on Saturday at "
    "seven. Will you come?\n\nBest,\nRobin",
)
JUDGE_INSTRUCTIONS = (
    "Write an email about: the room for the course has changed",
    "Write an email about: a question about the order",
    "Write an email about: lunch tomorrow",
    "Write an email about: the draft is ready to read",
    "Write an email about: a parcel that did not arrive",
    "Write an email about: sorry for the late answer",
    "Write an email about: the plan for the summer",
    "Write an email about: your new address",
)
"""The base's answers to these are negatives of the judge, which must not have seen the answers it scores."""
MAX_PROMPTS = 50
MAX_PROMPT_CHARS = 2_000
"""About 500 tokens: a quarter of the embedded base's context."""
MIN_TEXTS = 10
"""Own mails, in training and held-out part each, below which no score is measured at all."""


class ComparedVersion(Schema):
    """One column of a comparison: the base or a version, its answers, its stored and its measured scores."""

    title: str
    version: int | None = None
    """None: the base."""
    model: str | None = None
    current: bool = False
    """It answers for the person now."""
    outcome: Outcome | None = None
    decision: GateDecision | None = None
    """What the gate stored with the version's job; None for the base and for jobs that are older than it."""
    answers: tuple[Generated, ...]
    voice: float | None = None
    """V on these answers: 0 writes like the base, 1 like the person; None: not measured."""
    authorship: float | None = None
    """Mean P(own) of the judge on these answers, 0 to 1."""
    style_distance: float | None = None
    """D between these answers and the person's mail, 0 alike to 2."""

    @property
    def stopped(self) -> int:
        """Answers that ended by themselves."""
        return sum(answer.stopped for answer in self.answers)


class Comparison(Schema):
    """Versions side by side: `versions[v].answers[p]` answers `prompts[p]`, with the seed `seeds[p]`."""

    user_id: str
    email: str
    base_model: str
    max_tokens: int
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    versions: tuple[ComparedVersion, ...]
    own_mails: int = 0
    """Mails of the person that the judge was fitted on."""
    own_authorship: float | None = None
    """Mean P(own) of the person's held-out mail: nobody scores higher."""
    own_style_distance: float | None = None
    """D between the person's own older and newer mail: nobody comes nearer."""
    notice: str = ""
    """What a reader of the scores must know; why there are none."""


@dataclass(frozen=True)
class OwnMail:
    """What answers are measured against; in memory only."""

    train: Sequence[Example]
    held_out: Sequence[Example]


def parse_prompts(text: str, name: str) -> tuple[str, ...]:
    """Return the prompts of a file, one a line, blank lines left out.

    Raises ConfigError with the number and the limit, never with the text. `name` is what it calls the file.
    """
    found = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not found:
        raise ConfigError(f"{name} holds no prompt. Write one a line, at most {MAX_PROMPTS}.")
    if len(found) > MAX_PROMPTS:
        raise ConfigError(f"{name} holds {len(found)} prompts; at most {MAX_PROMPTS} are answered at a time.")
    for number, prompt in found:
        if len(prompt) > MAX_PROMPT_CHARS:
            raise ConfigError(
                f"Line {number} of {name} has {len(prompt):,} characters; a prompt has at most "
                f"{MAX_PROMPT_CHARS:,}. Shorten it."
            )
        if any(unicodedata.category(character) == "Cc" and character != "\t" for character in prompt):
            raise ConfigError(f"Line {number} of {name} holds control characters. Give a plain text file.")
    return tuple(prompt for _, prompt in found)


def parse_versions(text: str) -> tuple[int, ...]:
    """Return version numbers of "2,3", in that order, each once. Raises ConfigError."""
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"[1-9][0-9]{0,5}", part) for part in parts):
        raise ConfigError(f"--versions takes version numbers like 2,3 (value: {text!r:.40}).")
    return tuple(dict.fromkeys(map(int, parts)))


def measure_answers(
    comparison: Comparison,
    own: OwnMail,
    judged_base: Sequence[Generated],
    panel: Sequence[str],
    config: GateConfig,
) -> Comparison:
    """Return the comparison with voice and style scores; the first version must be the base.

    `judged_base` are the base's answers to `JUDGE_INSTRUCTIONS`, `panel` is other people's words, as the gate
    takes them (`panel_texts`). Where the person has too little mail the
    scores stay None and `notice` says so.
    """
    train, held_out = ([example.output for example in part] for part in (own.train, own.held_out))
    if min(len(train), len(held_out)) < MIN_TEXTS:
        return comparison.model_copy(
            update={
                "notice": f"No scores: {len(train)} own mails to compare with and {len(held_out)} newer ones "
                f"to calibrate by are too few; {MIN_TEXTS} of each are needed."
            }
        )
    names = learn_names([*train, *held_out])
    try:
        judge = fit_judge(train, panel, [answer.text for answer in judged_base], names=names)
    except ValueError:
        return comparison.model_copy(
            update={"notice": "No scores: greetings and names aside, too little text is left to learn from."}
        )
    base = [answer.text for answer in comparison.versions[0].answers]
    scored, notice, found = [], "", {}
    for version in comparison.versions:
        texts = [answer.text for answer in version.answers]
        voice = measure_voice(
            judge,
            own_mails=len(train),
            own_held_out=held_out,
            base_outputs=base,
            candidate_outputs=texts,
        )
        style = measure_style(
            own_train=train,
            own_held_out=held_out,
            base_outputs=base,
            candidate_outputs=texts,
            names=names,
        )
        assert voice is not None and style is not None  # no side is empty
        scored.append(
            version.model_copy(
                update={
                    "voice": voice.value,
                    "authorship": voice.candidate,
                    "style_distance": style.candidate,
                }
            )
        )
        if voice.own_mails < config.voice.min_own_mails or voice.room < config.voice.min_room:
            notice = (
                f"The judge is weak here ({voice.own_mails} own mails, {voice.room:.2f} between base and "
                f"person; {config.voice.min_own_mails} and {config.voice.min_room:g} are needed to decide by "
                "it): read the voice scores as a hint."
            )
        found = {"own_authorship": voice.ceiling, "own_style_distance": style.own}
    return comparison.model_copy(
        update={"versions": tuple(scored), "own_mails": len(train), "notice": notice, **found}
    )
