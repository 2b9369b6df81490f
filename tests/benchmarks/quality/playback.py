"""What instructions by playback buy: adapters trained on subjects and on playback, each judged by both.

One run does a mailbox: it asks the base about every mail as a job does, trains one adapter on each kind of
instruction, and measures each on the held-out mails with both kinds. The app's requests look like playback's:
what an adapter does with those counts most, and the other kind says what a change of prompts costs.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serving.base import Serving
from tasks.answer_cache import open_answers
from tasks.playback import ask_about
from tests.benchmarks.quality.adapters import answers, digest, engine, losses
from tests.benchmarks.quality.ledger import Ledger, Run
from tests.benchmarks.quality.measure import course, loaded_base, numbers, prepare_mailbox, train
from tests.benchmarks.quality.page import table
from tests.benchmarks.quality.paired import compare, mean_nll
from training.config import NOT_IN_RECIPE, TrainConfig
from training.dataset import Prepared, prompt_messages, to_jsonl
from training.evidence import chosen_prompts
from training.export import export_gguf
from training.gate_config import load_gate_config
from training.harm import Generation, fact_recall
from training.panel import read_panel
from training.playback import PlayedBack, can_be_asked, every_example, with_instructions
from training.salutation import learn_names
from training.schemas import Example, Generated
from training.voice import AuthorshipJudge, fit_judge, measure_voice

TITLE = "Instructions: subject or playback"
KIND = "instructions"
MAILBOXES = ("david", "pereira-s", "wh-emmett-l")
INSTRUCTIONS = ("subject", "playback")
SEEDS = (17,)


def runs() -> list[Run]:
    return [run_of(mailbox, seed) for seed in SEEDS for mailbox in MAILBOXES]


def run_of(mailbox: str, seed: int) -> Run:
    """Return the run of one mailbox and seed of training."""
    return Run(KIND, mailbox, {"seed": seed})


def measure_instructions(run: Run, work: Path) -> dict[str, Any]:
    """Ask, train twice, measure crosswise; returns numbers only."""
    gate, config = load_gate_config(), run.config
    by_subject = prepare_mailbox(run.mailbox, config)
    with engine(work) as serving:
        played = _played_back(run.mailbox, by_subject, serving, work)
        prepared = {"subject": by_subject, "playback": played.prepared}
        held_out = {kind: prepared[kind].held_out for kind in INSTRUCTIONS}
        prompts = {kind: chosen_prompts(held_out[kind], gate.outputs) for kind in INSTRUCTIONS}
        folders = {kind: _trained(prepared[kind].train, config, work) for kind in INSTRUCTIONS}
        arms: dict[str, Path | None] = {"base": None}
        arms |= {kind: folder for kind, (folder, _) in folders.items()}
        outputs = {
            arm: {kind: _outputs(folder, prompts[kind], serving, work) for kind in INSTRUCTIONS}
            for arm, folder in arms.items()
        }
        to_training = chosen_prompts(by_subject.train, gate.judge_outputs)
        negatives = [output.text for output in _outputs(None, to_training, serving, work)]
    judge = _judge(by_subject, negatives)
    return {
        "written": played.written,
        "faults": {fault.value: count for fault, count in played.faults.items()},
        "course": {kind: found for kind, (_, found) in folders.items()},
        "losses": {
            arm: {kind: numbers(losses(folder, held_out[kind], work)) for kind in INSTRUCTIONS}
            for arm, folder in arms.items()
        },
        "voice": {
            arm: {
                kind: _voice(judge, by_subject, outputs["base"][kind], outputs[arm][kind])
                for kind in INSTRUCTIONS
            }
            for arm in INSTRUCTIONS
        },
        "facts": {arm: {kind: fact_recall(outputs[arm][kind]) for kind in INSTRUCTIONS} for arm in outputs},
    }


def section(ledger: Ledger) -> str:
    """Return the tables: what the base wrote, and the two adapters crosswise."""
    return "\n\n".join(
        [
            "Adapters trained on instructions from subject lines and from playback (the preset `default` "
            "otherwise), each measured on the same held-out mails with both kinds of prompts. Loss in nat "
            "per reply token; voice: 0 writes like the base with the same prompts, 1 like the person; facts: "
            "share of the prompts' names, numbers and dates that the outputs hold. Playback − subject is the "
            "difference of the two adapters on prompts of their own kind, with a paired bootstrap over "
            "mails; negative: playback is better.",
            table(
                [
                    "mailbox, seed",
                    "trained on",
                    "loss, subject prompts",
                    "loss, playback prompts",
                    "playback − subject (95 %)",
                    "voice, subject prompts",
                    "voice, playback prompts",
                    "facts, subject prompts",
                    "facts, playback prompts",
                ],
                [row for run in runs() for row in _rows(run, ledger.find(run))],
            ),
            "What became of the base's answers (smollm2-135m):\n\n"
            + table(
                ["mailbox", "instructions written", "subject kept, by reason"],
                [_told(mailbox, ledger.find(run_of(mailbox, SEEDS[0]))) for mailbox in MAILBOXES],
            ),
        ]
    )


def _rows(run: Run, found: dict[str, Any] | None) -> list[list[str]]:
    name = f"{run.mailbox}, {run.settings['seed']}"
    if found is None:
        return [[name, "not measured", *[""] * 7]]
    by = found["losses"]
    own_kind = compare(by["playback"]["playback"], by["subject"]["subject"])
    rows = []
    for arm in ("base", *INSTRUCTIONS):
        voice = found["voice"].get(arm)
        rows.append(
            [
                name,
                "nothing: the base" if arm == "base" else arm,
                *(f"{mean_nll(by[arm][kind]):.3f}" for kind in INSTRUCTIONS),
                str(own_kind) if arm == "playback" else "",
                *("" if voice is None else f"{voice[kind]:.2f}" for kind in INSTRUCTIONS),
                *(_share(found["facts"][arm][kind]) for kind in INSTRUCTIONS),
            ]
        )
    return rows


def _told(mailbox: str, found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return [mailbox, "not measured", ""]
    mails = found["written"] + sum(found["faults"].values())
    return [
        mailbox,
        f"{found['written']} of {mails}",
        ", ".join(f"{count} {fault}" for fault, count in found["faults"].items()),
    ]


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


# ---- one run ---------------------------------------------------------------------------------------


def _played_back(mailbox: str, prepared: Prepared, serving: Serving, work: Path) -> PlayedBack:
    """Ask about every mail; the answers are kept in the work folder, whose owner alone reads it."""
    examples = [example for example in every_example(prepared) if can_be_asked(example)]
    with open_answers((work / "asked").as_posix(), mailbox) as cache:
        return with_instructions(prepared, ask_about(serving, examples, cache))


def _trained(examples: Sequence[Example], config: TrainConfig, work: Path) -> tuple[Path, dict[str, Any]]:
    """Return the folder of an adapter trained on `examples`, kept as adapters.py does, and how that went."""
    chosen = config.model_dump(mode="json", exclude=NOT_IN_RECIPE | {"data"})
    folder = work / "adapters" / digest(KIND, chosen, to_jsonl(examples))
    told = folder / "course.json"
    if not told.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        base = loaded_base(config, work)
        found = course(train(config, examples, base, folder))
        export_gguf(folder / "adapter", base.info, base.model.config.to_dict(), folder / "adapter.gguf")
        shutil.rmtree(folder / "checkpoint", ignore_errors=True)
        told.write_text(json.dumps(found), encoding="utf-8")
    return folder, json.loads(told.read_text(encoding="utf-8"))


def _outputs(
    folder: Path | None, prompts: Sequence[Example], serving: Serving, work: Path
) -> list[Generation]:
    gate = load_gate_config()
    found: Sequence[Generated] = answers(
        folder, prompts, serving, work, seed=gate.seed, max_tokens=gate.max_tokens
    )
    return [
        Generation(prompt_messages(e.instruction, e.input)[-1].content, answer.text, answer.stopped)
        for e, answer in zip(prompts, found, strict=True)
    ]


def _judge(prepared: Prepared, negatives: Sequence[str]) -> AuthorshipJudge:
    """Return one judge for all outputs of the mailbox."""
    own = [example.output for example in prepared.train]
    names = learn_names([*own, *(example.output for example in prepared.held_out)])
    panel = [text for persona in read_panel() for text in persona.texts]
    return fit_judge(own, panel, negatives, names=names)


def _voice(
    judge: AuthorshipJudge, prepared: Prepared, base: Sequence[Generation], arm: Sequence[Generation]
) -> float:
    """Return V of the outputs; NaN when there is nothing to compare with."""
    measured = measure_voice(
        judge,
        own_mails=len(prepared.train),
        own_held_out=[example.output for example in prepared.held_out],
        base_outputs=[output.text for output in base],
        candidate_outputs=[output.text for output in arm],
    )
    return float("nan") if measured is None else measured.value
