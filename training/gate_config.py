"""The gate's thresholds: `configs/gate.yaml`, frozen and strict once loaded.

Sources: P = references/voice.md §3, C = calibrated on real mailboxes (docs/quality.md, "Gate calibration").
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from training.config import CONFIGS, parse_settings, read_settings
from training.errors import ConfigError

COUNTED_OF = 24
"""Outputs that limits such as `max_copies` were set for (P); fewer outputs have them in proportion."""
FLOORS = {"min_held_out": 10, "min_held_out_threads": 5, "outputs": 12, "judge_outputs": 6}
"""Half of what is shipped and was calibrated (JUDGED). Ten mails show a gain of 0.20 nat, twice `min_gain`
(P, metric 1: n = (2.49 * 0.25 / 0.20)²); what fewer show is chance."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SkillLimits(_Section):
    """Metric 1: loss on held-out mail, nat per reply token."""

    min_gain: float = Field(default=0.10, ge=0)
    """Mean gain over the base; 0.10 is a perplexity divided by 1.105 (P)."""
    max_loss_to_current: float = Field(default=0.02, ge=0)
    """How much worse than the adapter in use, on the new held-out mail (P)."""
    max_loss_to_current_old: float = Field(default=0.05, ge=0)
    """The same on the old set: forgetting (P)."""
    min_old_mails: int = Field(default=5, ge=1)
    """Mails of the old set below which it is shown and decides nothing."""


class SpecificityLimits(_Section):
    """Metric 2: this person's voice, not just mail."""

    min_margin_lower: float = Field(default=0.0, ge=0)
    """The lower bound of S must be above it, nat per token (P)."""
    min_best_share: float = Field(default=0.60, ge=0, le=1)
    """R (P; chance is 0.20 with three references)."""
    min_own_minus_reference: float = Field(default=0.60, ge=0)
    """Skill on own mail minus skill on the references' mail, nat per token (C: 0.63 to 2.37 for own adapters
    of people with more than 100 mails, 0.47 and 0.49 with 63; 0.03 to 0.55 for strangers', whose real mail is
    nearer to a person's than the personas')."""
    references: int = Field(default=4, ge=0)
    """How many personas of the panel are compared with, the first in order; an adapter is trained for each,
    once per base and machine. 0: specificity is not measured (P has three, the repository carries four)."""


class VoiceLimits(_Section):
    """Metric 3: the authorship judge."""

    min_value: float = Field(default=0.50, ge=0, le=1)
    """V, between the base (0) and the person (1) (P; C: 0.57 to 1.09 for own adapters of people with more
    than 100 mails, 0.15 to 0.65 for strangers': it tells the base from a person, and hardly one person from
    another)."""
    max_loss_to_current: float = Field(default=0.05, ge=0)
    """How much lower V may be than the adapter in use has it (P)."""
    min_own_mails: int = Field(default=40, ge=1)
    """Training mails below which the judge is too weak to decide anything (P)."""
    min_room: float = Field(default=0.15, gt=0)
    """C - F below which it cannot tell the person from the base (P)."""


class StyleLimits(_Section):
    """Metric 4: the style profile."""

    min_gap_closed: float = Field(default=0.30, ge=0, le=1)
    """W, the share of the way from the base to the person (C: 0.23 to 0.76 for own adapters, 0.05 and -0.34
    with 63 mails; -0.89 to 0.18 and 0.42 and 0.45 once each for strangers')."""
    max_loss_to_current: float = Field(default=0.03, ge=0)
    """How much farther than the adapter in use (P)."""
    min_gap: float = Field(default=0.08, gt=0)
    """D(base) - D(own) below which there is no way to measure (C: the chance spread of D at 24 texts)."""
    min_length_ratio: float = Field(default=0.6, gt=0, le=1)
    max_length_ratio: float = Field(default=1.6, ge=1)
    """Median words of outputs over the person's (P); the person's own 1 lies between the two."""
    max_class_variation: float = Field(default=0.45, ge=0, le=1)
    """Total variation of greeting and of sign-off classes, each (C: 0 to 0.28 for own adapters, 0.32 for own
    mail at its 95 % point; strangers' sign-offs from 0.50 on. P's 0.35 leaves own mail next to no room)."""


class HarmLimits(_Section):
    """Metric 5: do no harm."""

    max_leaks: int = Field(default=0, ge=0)
    max_copies: int = Field(default=1, ge=0)
    """Outputs with 12 copied words in a row, of 24 (P); fewer outputs have it in proportion."""
    max_overfit_gap: float = Field(default=1.0, ge=0)
    """Nat per token beyond the base's own gap (C: 0.21 to 0.79 for own adapters, 2.4 to 5.2 for
    adapters that know their training mail by heart)."""
    max_membership_auc: float = Field(default=0.98, ge=0.5, le=1)
    """C: 0.58 to 0.85 for own adapters on real mailboxes, 0.96 where mails are much alike, 1.00 for those
    that know their training mail by heart: how well single mails are told depends on how much mails differ,
    so the overfit gap is the finer measure. Published for LoRA at three epochs: 0.775; P had 0.70."""
    max_recall_loss: float = Field(default=0.05, ge=0)
    """How much lower than the lower of base's and person's the recall of the prompts' facts may be, at the
    upper bound (P; C: people take up a fraction of what the base repeats)."""
    min_facts: int = Field(default=20, ge=1)
    """Facts in the prompts below which recall is shown and decides nothing (C)."""
    min_stop_share: float = Field(default=0.90, ge=0, le=1)
    """C: 0.92 to 1.00 for own adapters, 0.79 and 0.88 where own mails are longer than `max_tokens`, which
    lowers the limit, and 0.25 to 0.46 for the base. P's 0.95 would refuse an adapter that mostly ends 23 of
    24 once in four runs."""
    max_repeats: int = Field(default=3, ge=1)
    """Times that one 4-gram may come in one output (P)."""
    max_repeating: int = Field(default=2, ge=0)
    """Outputs that repeat more, of 24 (C: 0 to 2 for own adapters); fewer outputs have it in proportion. As
    many as the base's where these are more, up to `max_repeating_share`."""
    max_repeating_share: float = Field(default=0.25, ge=0, le=1)
    """Share of the outputs up to which the base excuses repetition: one that always repeats itself must not
    excuse everything (C: the base in 2 to 8 of 24, own and strangers' adapters in 3 at most)."""
    max_empty: int = Field(default=2, ge=0)
    """Outputs without a word, of 24; fewer outputs have it in proportion (C: 0 for every adapter, once 1 for
    the base). They leak and copy nothing, so that nothing else here refuses them."""
    max_prompt_use_lost: float = Field(default=0.40, ge=0)
    """Nat per token that the prompts of the neutral tasks tell the candidate less than the base (C: 0.01 to
    0.23 for seven own adapters, 0.43 for one trained on shuffled words)."""


class GateConfig(_Section):
    """All thresholds. Defaults are the shipped ones; a test holds the two together."""

    for_tests: bool = False
    """Lifts FLOORS, for tests whose jobs hold out a handful of mails. Such a gate proves nothing."""
    min_held_out: int = Field(default=20, ge=2)
    """Held-out mails below which nothing is proven (P: 20 to judge, about 40 to see 0.10 nat). Specificity
    has no vote on fewer that every reference can be compared on."""
    min_held_out_threads: int = Field(default=10, ge=1)
    """Conversations that they must come from, which are what the bootstrap draws. A lower bound that is
    called 95 % sure is so to 92 % with 10 of equal size, 89 % with 5 and 75 % with 2 (normal differences;
    Student's t at 1.645 * sqrt((n - 1) / n), but for 2, where it is the lower of the two), and with one it
    has no width (C: 18 to 51 in ten mailboxes and the sample)."""
    outputs: int = Field(default=24, ge=1, le=200)
    """Prompts that each arm answers (P)."""
    min_answered_share: float = Field(default=0.80, ge=0.5, le=1)
    """Share of the prompts that every arm must have answered (JUDGED: 20 of 24, as many as `min_held_out`; C:
    all were). Those that do not fit into the engine's context are no random choice, but the long ones."""
    judge_outputs: int = Field(default=12, ge=1, le=200)
    """Training prompts that the base answers besides: negatives of the authorship judge (P, §2.1)."""
    max_tokens: int = Field(default=256, ge=16, le=4096)
    """Limit of one output; one that reaches it has not stopped by itself. At most twice the context of the
    embedded engine."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """Of the one-sided bounds of metrics 1, 3 and 4 (P)."""
    specificity_confidence: float = Field(default=0.90, gt=0.5, lt=1)
    """Of the lower bound of S (P)."""
    draws: int = Field(default=2_000, ge=100, le=100_000)
    """Bootstrap draws (P)."""
    seed: int = Field(default=17, ge=0, le=1_000_000_000)
    """Of draws and outputs: numpy takes no negative one, and the n-th prompt has n more, in 31 bits."""
    panel: tuple[Path, ...] = ()
    """Folders of further mailboxes for the reference panel, in the format of samples/personas, of which each
    gives as many mails as those: invented people or public mailboxes, never another customer. A relative
    one lies beside the file. Their words are negatives of the judge; opponents they are from `references` 5
    on."""
    min_votes: int = Field(default=2, ge=0, le=3)
    """Of specificity, voice and style, how many must pass (P); 0: the hard checks decide alone."""
    skill: SkillLimits = SkillLimits()
    specificity: SpecificityLimits = SpecificityLimits()
    voice: VoiceLimits = VoiceLimits()
    style: StyleLimits = StyleLimits()
    harm: HarmLimits = HarmLimits()

    @model_validator(mode="after")
    def _enough_to_judge_by(self) -> GateConfig:
        for name, least in FLOORS.items():
            value = getattr(self, name)
            if value < least and not self.for_tests:
                raise ValueError(
                    f"{name} is {value} and must be at least {least}: fewer prove nothing. Raise it"
                )
        if self.min_held_out_threads > self.min_held_out:
            raise ValueError(
                f"min_held_out_threads is {self.min_held_out_threads}, above min_held_out "
                f"{self.min_held_out}, and every mail is of one conversation. Lower it"
            )
        return self


def load_gate_config(path: Path = CONFIGS / "gate.yaml") -> GateConfig:
    """Load the thresholds. Raises ConfigError naming the file, the field and what is allowed."""
    data = read_settings(path, like="configs/gate.yaml")
    _require_single_keys(path)
    config = parse_gate_config(data, source=path.name)
    # Workers run in another folder, where a relative name would be another one.
    panel = tuple(path.parent.resolve() / folder.expanduser() for folder in config.panel)
    return config.model_copy(update={"panel": panel})


def parse_gate_config(data: dict[str, Any], *, source: str = "the gate's configuration") -> GateConfig:
    """Validate thresholds that are already a mapping. Raises ConfigError."""
    return parse_settings(GateConfig, data, source)


def _require_single_keys(path: Path) -> None:
    """Raise ConfigError when a threshold stands twice: YAML takes the last one without a word."""
    root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    sections = [("", root)]
    if isinstance(root, yaml.MappingNode):
        sections += [(f"{key.value}.", value) for key, value in root.value]
    for before, section in sections:
        lines: dict[str, int] = {}
        for key, _ in section.value if isinstance(section, yaml.MappingNode) else ():
            name, line = f"{before}{key.value}", key.start_mark.line + 1
            if name in lines:
                raise ConfigError(
                    f"{path.name}: {name} stands twice (lines {lines[name]} and {line}), and only the last "
                    "would count. Remove one of the two."
                )
            lines[name] = line
