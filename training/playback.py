"""Instructions by playback: the base model says what each mail was asked to do.

The app asks with a request ("Write an email to ask for …", "Write a reply to the email below so that …"), and
a subject line is none. So the base reads the mail and writes the request that it carries out: Panza's data
playback (arXiv 2407.10994; references/voice.md §1.1), one to three sentences in the imperative. A small base
often fails at that. An answer that gives the mail away, makes facts up or is no request is dropped, and the
mail keeps the instruction that its subject makes (training.dataset.make_example).

Pure: what is asked, what is accepted, and examples with new instructions. Who asks is tasks/playback.py.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from training.dataset import Prepared, without_markup
from training.harm import prompt_facts, word_runs
from training.mail.languages import UNDETERMINED, detect_language
from training.salutation import take_apart
from training.schemas import ChatMessage, Example, Generated, GenerateOptions

PLAYBACK_OPTIONS = GenerateOptions(temperature=0, top_p=1, top_k=1, seed=17, max_tokens=80)
"""The likeliest answer, the same at every time. 80 tokens hold three sentences of usual length."""
MAX_MAIL_WORDS, MAX_MAIL_CHARACTERS = 150, 1500
"""What the base reads of a mail: what it is for stands at its beginning."""
MAX_CONTEXT_WORDS, MAX_CONTEXT_CHARACTERS = 80, 800
LEAST_WORDS, MOST_WORDS, MOST_SENTENCES = 5, 60, 3
TOKENS_PER_ANSWER = 800
"""An answer takes the time in which a CPU trains on so many tokens: SmolLM2-135M 1.8 to 2.5 s on two cores
that others used as well (its first guess for training is 400 tokens a second)."""
COPIED_WORDS = 8
"""Words in a row out of the mail: an instruction that holds them gives the answer away."""
GROUNDED_SHARE = 1 / 2
"""Share of the instruction's content words that the mail must hold in some form. SmolLM2-135M asks for "a
refund" where nobody mentioned one; a good paraphrase keeps what the mail is about."""
LANGUAGE = "en"
"""Of the app's requests. A mail in another language keeps its subject, which is in its own language."""


class Fault(StrEnum):
    """Why a mail keeps the instruction that its subject makes."""

    LANGUAGE = "not in English"
    UNANSWERED = "not answered by the engine"
    EMPTY = "too short"
    TOO_LONG = "too long"
    NO_REQUEST = "no request"
    COPIES = "copied from the mail"
    PARROTS = "copied from the prompt"
    INVENTED = "with facts that the mail does not hold"
    UNRELATED = "about something else"


@dataclass(frozen=True)
class PlayedBack:
    """A data set with its instructions, and what became of the answers."""

    prepared: Prepared
    written: int
    """Mails whose instruction the base wrote."""
    faults: dict[Fault, int]

    @property
    def sentence(self) -> str:
        """Say in one sentence of counts how the instructions came about."""
        mails = self.written + sum(self.faults.values())
        kept = ", ".join(f"{count} {fault}" for fault, count in self.faults.items())
        return f"The base model wrote the instructions of {self.written} of {mails} mails" + (
            f"; the others keep their subject, because the answer was: {kept}." if kept else "."
        )


def expected_sentence(prepared: Prepared, cpu_tokens_per_second: float | None) -> str:
    """Say what playback will ask for and what that takes, before any model is asked.

    `cpu_tokens_per_second` is the base's training rate; None: another machine answers, no time is said.
    """
    asked = sum(can_be_asked(example) for example in every_example(prepared))
    took = ""
    if cpu_tokens_per_second:
        seconds = asked * TOKENS_PER_ANSWER / cpu_tokens_per_second
        took = f", about {seconds:.0f} s" if seconds < 100 else f", about {seconds / 60:.0f} min"
    return (
        f"Before training, the base model is asked for the instructions of {asked} mails{took} "
        "(instructions: playback); answers that earlier trainings were given are not asked for again."
    )


# ---- what is asked ---------------------------------------------------------------------------------

_SYSTEM = (
    "You are given an email that a person wrote. Say in one sentence what they wanted it to do, as an order "
    "to the one who writes it. Take every name, day and number from the email, and leave out the rest."
)
_MAILS = (
    (
        "Hi Sam, the boat is sold, I got what we paid for it. Come by on Friday and I'll give you your half."
        "\n\nCheers, Ruth",
        "Write an email to tell Sam that the boat is sold and to ask him to come by on Friday for his half.",
    ),
    (
        "Could you send me the figures before noon? I cannot finish the summary without them."
        "\n\nThanks!\nRuth",
        "Write an email to ask for the figures before noon.",
    ),
    (
        "I'll be back in the office on Monday, so please leave the keys with Ann until then.",
        "Write an email to say that I am back on Monday and that the keys stay with Ann until then.",
    ),
)
_REPLIES = (
    (
        "Are you free for lunch on Tuesday? I would like to hear about the new house.",
        "Tuesday is hopeless I'm afraid. How about Thursday, same place?",
        "Write a reply so that lunch moves from Tuesday to Thursday.",
    ),
    (
        "Please find attached the draft contract.",
        "Thanks. Two things before I sign: the notice period is too short, and page 4 has the wrong address.",
        "Write a reply so that they correct the notice period and the address on page 4.",
    ),
    (
        "Did you get the parcel?",
        "I did, thank you so much!",
        "Write a reply so that they know the parcel is there, and thank them.",
    ),
)
"""Invented. With them SmolLM2-135M answers in this form; without, it goes on with the mail."""


def can_be_asked(example: Example) -> bool:
    """Tell whether the mail may be in the language of the app's requests."""
    return detect_language(example.output) in (LANGUAGE, UNDETERMINED)


def playback_messages(example: Example) -> list[ChatMessage]:
    """Return the request for one mail's instruction: the order, three invented examples, the mail."""
    shown = (
        [(_with_received(received, mail), order) for received, mail, order in _REPLIES]
        if example.input
        else [(_alone(mail), order) for mail, order in _MAILS]
    )
    # Without the sign-off: a small base addresses its order to the name that it read last.
    mail = _beginning(_unsigned(example.output), MAX_MAIL_WORDS, MAX_MAIL_CHARACTERS)
    received = _beginning(example.input, MAX_CONTEXT_WORDS, MAX_CONTEXT_CHARACTERS)
    asked = _with_received(received, mail) if received else _alone(mail)
    turns = [
        message
        for mail_shown, order in shown
        for message in (
            ChatMessage(role="user", content=mail_shown),
            ChatMessage(role="assistant", content=order),
        )
    ]
    return [
        ChatMessage(role="system", content=_SYSTEM),
        *turns,
        ChatMessage(role="user", content=without_markup(asked)),
    ]


def playback_key(messages: Sequence[ChatMessage], base_digest: str) -> str:
    """Return SHA-256 of all that decides an answer: mail, prompt, the base's weights, and the options."""
    what = [[m.to_json_dict() for m in messages], base_digest, PLAYBACK_OPTIONS.to_json_dict()]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode("utf-8")).hexdigest()


def _alone(mail: str) -> str:
    return f"The email:\n\n{mail}"


def _with_received(received: str, mail: str) -> str:
    return f"The email received:\n\n{received}\n\nThe reply:\n\n{mail}"


def _unsigned(text: str) -> str:
    parts = take_apart(text)
    return "\n\n".join(part for part in (parts.greeting, parts.body) if part)


def _beginning(text: str, words: int, characters: int) -> str:
    found = list(re.finditer(r"\S+", text))
    return text[: found[words - 1].end() if len(found) > words else None][:characters].rstrip()


# ---- what is accepted ------------------------------------------------------------------------------

_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_SENTENCE_END = re.compile(r"[.!?]+[\"')\]]*(?:\s+|$)")
_LABEL = re.compile(r"^(?:the )?(?:instruction|request|order|prompt|answer|task)\s*:\s*", re.I)
_OPENING = re.compile(
    r"^(?:please\s+)?(?:write|compose|draft|send)\s+(?:(?:an?|the|this|your)\s+)?(?:\w+\s+)?"
    r"(?:e-?mail|message|mail|note|reply|response|answer)\b(?:\s+to\s+the\s+e-?mail(?:\s+below)?)?[\s,:]*",
    re.I,
)
"""How requests begin; the app's own beginning takes its place."""
_ORDER_WORDS = (
    "accept acknowledge add address advise agree announce answer apologise apologize approve arrange "
    "ask assure attach book cancel check clarify complain confirm congratulate correct decline "
    "describe discuss encourage explain express find follow forward give greet inform introduce "
    "invite keep let make mention notify offer order point postpone praise promise propose provide "
    "recommend refer refuse reject remind reply report request respond return say schedule send share "
    "show state submit suggest summarise summarize tell thank turn update urge warn wish write"
)
_ORDERS = frozenset(_ORDER_WORDS.split())
"""Verbs that a request may begin with, beside the app's own "Write an email …"."""
_EMPTY_WORDS = (
    "about after again also another anything back been before being below come could does doing email "
    "everyone from have here into just know like mail make message more most much need needs only other over "
    "please reply response said same should some something such than that their them then there these "
    "they thing this those until very want wants well were what when where which while will with "
    "would yes your yours yourself"
)
_FUNCTION_WORDS = frozenset(_EMPTY_WORDS.split())
_ENDING = re.compile(r"(?:ing|ed|es|e|s)$")
_FRAMES = ("Write an email", "Write a reply to the email below", "Write a reply")


def read_answer(answer: Generated, example: Example) -> str | Fault:
    """Return the instruction that the base's `answer` gives the mail, in the app's words, or its fault."""
    text = _LABEL.sub("", " ".join(answer.text.split()).strip("\"'“”* ")).strip("\"'“”* ")
    words = _WORD.findall(text)
    if len(words) < LEAST_WORDS:
        return Fault.EMPTY
    sentences = [sentence for sentence in _SENTENCE_END.split(text) if sentence]
    if not answer.stopped or len(words) > MOST_WORDS or len(sentences) > MOST_SENTENCES:
        return Fault.TOO_LONG
    if detect_language(text) not in (LANGUAGE, UNDETERMINED):
        return Fault.LANGUAGE
    rest = _without_opening(text)
    if rest is None:
        return Fault.NO_REQUEST
    fault = _find_fault(rest, example)
    return fault or without_markup(f"{_frame_of(example)} {rest}")


def _without_opening(text: str) -> str | None:
    """Return what a request asks for after "Write an email"; None when the text is no request."""
    opened = _OPENING.match(text)
    if opened:
        rest = text[opened.end() :]
        return rest if re.match(r"[^\W\d_]", rest) else None
    bare = re.sub(r"^please\s+", "", text, flags=re.I)
    first = re.match(r"[^\W\d_]+", bare)
    if first is None or first.group().lower() not in _ORDERS:
        return None
    return f"to {first.group().lower()}{bare[first.end() :]}"


def _frame_of(example: Example) -> str:
    mail, to_received, reply = _FRAMES
    if example.input:
        return to_received
    # A reply to a mail that is not at hand: only its instruction says so.
    return reply if example.instruction.startswith(reply) else mail


def _find_fault(rest: str, example: Example) -> Fault | None:
    if not set(word_runs(rest, COPIED_WORDS)).isdisjoint(word_runs(example.output, COPIED_WORDS)):
        return Fault.COPIES
    read = f"{example.output}\n{example.input}".lower()
    about, held = _stems(rest), _stems(read)
    if not (about - held).isdisjoint(_SHOWN):
        return Fault.PARROTS
    # After a first word of its own, so that a name at the beginning counts as one.
    if not all(_holds(read, fact) for fact in prompt_facts(f"write {rest}")):
        return Fault.INVENTED
    held &= about
    return None if about and len(held) >= GROUNDED_SHARE * len(about) else Fault.UNRELATED


def _holds(read: str, fact: str) -> bool:
    """Tell whether a text in lower case holds a name or a number, the 15 in "15th" included."""
    if re.match(r"i['’]", fact):
        return True  # "I'm" is no name
    edge = r"\d" if fact[0].isdigit() else r"\w"
    return re.search(rf"(?<!{edge}){re.escape(fact)}(?!{edge})", read) is not None


def _stems(text: str) -> set[str]:
    """Return how each content word begins: "moving" and "moved", "invoice" and "invoices" are one."""
    words = set(_WORD.findall(text.lower())) - _FUNCTION_WORDS - _ORDERS
    bare = (word for word in words if len(word) > 3 and "'" not in word and "’" not in word)
    return {_ENDING.sub("", word)[:4] for word in bare}


_SHOWN = _stems("\n".join(order for *_, order in (*_MAILS, *_REPLIES)))
"""What the prompt's own orders are about: a small base repeats them for any mail."""


# ---- examples --------------------------------------------------------------------------------------


def with_instructions(prepared: Prepared, answers: Mapping[str, Generated | None]) -> PlayedBack:
    """Give every example the instruction that the base wrote for it, where there is a good one.

    `answers` by `Example.id`; a mail without a key was not asked about, None: the engine did not answer. A
    mail gets the same instruction in every part of the data set, so that all arms of the gate read the same.
    """
    new: dict[str, Example] = {}
    faults: Counter[Fault] = Counter()
    for example in every_example(prepared):
        instruction = _instruction_of(example, answers)
        if isinstance(instruction, Fault):
            faults[instruction] += 1
        else:
            new[example.id] = example.model_copy(update={"instruction": instruction})

    def renewed(examples: Sequence[Example]) -> tuple[Example, ...]:
        return tuple(new.get(example.id, example) for example in examples)

    return PlayedBack(
        replace(
            prepared,
            train=renewed(prepared.train),
            held_out=renewed(prepared.held_out),
            old=renewed(prepared.old),
        ),
        len(new),
        dict(faults.most_common()),
    )


def every_example(prepared: Prepared) -> list[Example]:
    """Return each example of the data set once: a held-out mail may also be one of the old ones."""
    found = {e.id: e for e in (*prepared.train, *prepared.held_out, *prepared.old)}
    return list(found.values())


def _instruction_of(example: Example, answers: Mapping[str, Generated | None]) -> str | Fault:
    if example.id not in answers:
        return Fault.LANGUAGE
    answer = answers[example.id]
    return Fault.UNANSWERED if answer is None else read_answer(answer, example)
