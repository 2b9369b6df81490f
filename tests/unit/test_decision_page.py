"""The page of a decision: outcome first, every check with its verdict, and two pictures a browser takes."""

from __future__ import annotations

import base64
import re
from xml.etree import ElementTree

from tasks.decision_page import decision_markdown
from tasks.decision_plots import WIDTH, draw_loss, draw_voice
from tests.decisions import check, decision, metrics, refused
from training.decision_words import LossSeries, VoiceScores, loss_series
from training.schemas import GateDecision, JobMetrics, Outcome

SVG = "{http://www.w3.org/2000/svg}"
PAGE = """\
**KEPT_CURRENT.** The adapter in use stays: the gain over the base (nat per token) is 0.0996 and must be at \
least 0.10, and 1 more check failed. Train again when there is more mail.

![Loss by step](…)

![Voice score between base and person](…)

| | check | value | must be |
|---|---|--:|--:|
| ✗~missed | **Skill: predicts the person's own mail** | | required |
| ✗~missed | gain over the base (nat per token) | 0.0996 | at~least~0.10 |
| ✓~met | lower bound of the gain over the base | 0.04 | above~0 |
| – | **Specificity: this person, not just mail** | | not~measured |
| ·~only~shown | **Voice: a judge of authorship takes it for theirs** | | no~vote |
| ·~only~shown | voice score | 0.62 | at~least~0.50 |
| ✗~missed | **Style: has the person's habits** | | one~vote |
| ✗~missed | share of the style gap that is closed | 0.30 | at~least~0.50 |
| ✗~missed | **No harm: leaks, copies, overfitting, obedience** | | required |
| ✗~missed | number of outputs that copy a training mail | 2 | at~most~1 |
| ✓~met | recall of the prompts' names, numbers and dates against the base | 0.02 | at~least~-0.05 |

Only shown: there is too little to measure it by, so it decides nothing.

Held-out loss: base 4.00, adapter 3.20, the adapter in use 3.15 nat per token on 25 mails.

Rank 8 for 96 mails."""


def texts(svg: str) -> dict[str, tuple[float, float]]:
    """Return what is written in a drawing, and where."""
    found = ElementTree.fromstring(svg).iter(f"{SVG}text")
    return {text.text or "": (float(text.attrib["x"]), float(text.attrib["y"])) for text in found}


def test_the_page_as_a_person_reads_it() -> None:
    page = decision_markdown(refused(), metrics(held_out_nll_current=3.15, chosen="Rank 8 for 96 mails."))
    assert re.sub(r"\(data:[^)]*\)", "(…)", page).replace("\u00a0", "~") == PAGE


def test_pictures_are_data_urls_of_drawings_that_parse() -> None:
    """Prefect's page takes `data:image/…` as the source of an image, and drops drawings beside the text."""
    page = decision_markdown(refused(), metrics())
    images = re.findall(r"\(data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)\)", page)
    titles = [next(iter(texts(base64.b64decode(image).decode()))) for image in images]
    assert titles == ["Loss by step", "Voice score"]
    assert "<svg" not in page


def test_a_decision_without_checks_or_curves_is_a_sentence() -> None:
    too_few = GateDecision(outcome=Outcome.NOT_PROVEN, reason="Not proven: 3 held-out mails are too few.")
    page = decision_markdown(too_few, JobMetrics())
    assert page == "**NOT_PROVEN.** Not proven: 3 held-out mails are too few."


def test_a_label_cannot_break_the_table() -> None:
    page = decision_markdown(decision(check("gain", 1, ">=", 0, label="a | b\nc")), JobMetrics())
    assert "| a \\| b c |" in page


def test_held_out_losses_stand_beside_their_lines_in_order() -> None:
    series = loss_series(metrics(held_out_nll_current=3.1))
    assert series is not None
    found = texts(draw_loss(series))
    base, adapter, in_use = found["base 4.00"], found["adapter 3.20"], found["in use 3.10"]
    assert base[1] < adapter[1] < in_use[1]


def test_labels_of_equal_losses_do_not_cover_each_other() -> None:
    series = loss_series(metrics(held_out_nll_adapter=4.0, held_out_nll_current=4.0))
    assert series is not None
    found = texts(draw_loss(series))
    heights = sorted(found[name][1] for name in ("base 4.00", "adapter 4.00", "in use 4.00"))
    assert min(heights[1] - heights[0], heights[2] - heights[1]) >= 12


def test_one_point_is_a_picture_too() -> None:
    svg = draw_loss(LossSeries(training=((0, 3.0),), validation=(), held_out=()))
    assert "nan" not in svg and "inf" not in svg
    assert "step 1" in texts(svg)


def test_the_adapter_stands_between_base_and_person_where_its_score_is() -> None:
    found = texts(draw_voice(VoiceScores(candidate=0.5, current=None, must_be=None, only_shown=False)))
    base, person, adapter = (found[name][0] for name in ("base 0", "person 1", "adapter 0.50"))
    assert adapter == (base + person) / 2
    assert not any("in use" in name for name in found)


def test_a_score_far_beyond_the_ruler_stands_at_its_end_with_its_number() -> None:
    found = texts(draw_voice(VoiceScores(candidate=-7.25, current=31.5, must_be=0.5, only_shown=True)))
    assert 40 <= found["adapter -7.25"][0] < found["base 0"][0]
    assert found["person 1"][0] < found["in use 31.50"][0] <= WIDTH - 40
