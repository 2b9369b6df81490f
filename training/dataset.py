"""From cleaned mail to training examples: instruction, chat template, held-out split, Alpaca JSONL.

The order of events in one job: `prepare` (clean → examples → split → judge) on the CPU side, the two
JSONL files through storage, `encode` on the GPU side.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pydantic import ValidationError

from training.config import DataConfig
from training.errors import ConfigError, NotEnoughMail
from training.schemas import ChatMessage, DataReport, DropReason, Example, Mail, Schema

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from training.mail.clean import CleanedMailbox, CleanMail

SYSTEM_MESSAGE = "You are an AI email assistant. Write emails in the user's voice and style."
"""Sent explicitly in training and with every request (the owner's Modelfile). Without an explicit system
message Ollama and the Hugging Face template render different prompts (references/ollama-live.md §2.3)."""


class ChatTemplate(Schema):
    """A base model's Jinja chat template and the special tokens that it names."""

    template: str
    bos_token: str = ""
    eos_token: str = ""

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast) -> ChatTemplate:
        """Return the template that a tokenizer carries. Raises ConfigError when it carries none."""
        if not isinstance(tokenizer.chat_template, str):
            raise ConfigError(
                "The base model's tokenizer has no single chat template; set chat_template for it."
            )
        return cls(
            template=tokenizer.chat_template,
            bos_token=str(tokenizer.bos_token or ""),
            eos_token=str(tokenizer.eos_token or ""),
        )

    def render(self, messages: Sequence[ChatMessage], *, add_generation_prompt: bool = True) -> str:
        """Return the text that the model reads, by the rules of transformers' own renderer (blocks trimmed).

        Written without transformers, so that the CPU side can compare prompts with a server.
        """
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        return environment.from_string(self.template).render(
            messages=[{"role": m.role, "content": m.content} for m in messages],
            add_generation_prompt=add_generation_prompt,
            bos_token=self.bos_token,
            eos_token=self.eos_token,
        )

    def render_for_server(self, messages: Sequence[ChatMessage]) -> str:
        """Return the prompt as servers render it: they add the begin-of-text token when they tokenise."""
        return self.model_copy(update={"bos_token": ""}).render(messages)


NEUTRAL_INSTRUCTIONS = (
    "Write an email about: moving our meeting to Thursday",
    "Write an email about: thank you for your help last week",
)
"""Fixed requests for samples that are shown and kept: never made from anybody's mail."""


class OldSet(Schema):
    """The held-out set of a person's first training, frozen: `old_set.json` in the job folder.

    Ids as SHA-256, so that it can outlive the mail. Its threads are never trained on again, whatever arrives
    in them; its mails show in every later run whether the voice of then is still there.
    """

    threads: tuple[str, ...] = ()
    mails: tuple[str, ...] = ()

    @classmethod
    def of(cls, held_out: Sequence[Example]) -> OldSet:
        return cls(
            threads=tuple(sorted({hash_id(e.thread_id) for e in held_out})),
            mails=tuple(sorted(hash_id(e.id) for e in held_out)),
        )


def hash_id(id: str) -> str:
    """Return SHA-256 of an id of the store, as 64 hex digits."""
    return hashlib.sha256(id.encode("utf-8")).hexdigest()


@dataclass(frozen=True)
class Retrain:
    """What the data of a retrain must be kept apart by; the default is a first training."""

    old: OldSet = field(default_factory=OldSet)
    unseen: frozenset[str] | None = None
    """Ids of mails in threads of which the adapter in use saw nothing; None: it saw none of them all."""
    only_new: bool = False
    """Judge by the new mail alone whether there is enough: nothing else is trained on."""


@dataclass(frozen=True)
class Prepared:
    """A mailbox turned into training data, and the report about it."""

    train: tuple[Example, ...]
    held_out: tuple[Example, ...]
    report: DataReport
    old: tuple[Example, ...] = ()
    """What is left of the first run's held-out set; only measured, like `held_out`."""


@dataclass(frozen=True)
class EncodedExample:
    """Token ids of one example; `input_ids[prompt_length:]` is the reply, the only training target."""

    id: str
    thread_id: str
    input_ids: tuple[int, ...]
    prompt_length: int
    masked: tuple[int, ...] = ()
    """Indices into `input_ids` of reply tokens that are read but never trained on; held-out loss has them."""

    @property
    def reply_length(self) -> int:
        return len(self.input_ids) - self.prompt_length


def prepare(
    mails: Sequence[Mail],
    config: DataConfig,
    *,
    sent: int | None = None,
    drafted: int = 0,
    retrain: Retrain | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Prepared:
    """Clean `mails`, make examples, split them and judge whether they are enough. Never raises for bad mail.

    `sent` is how many sent mails the user has in all, when not all were read; `drafted` how many were not
    read because the AI had drafted them.
    """
    cleaned = _clean(mails, config, on_progress)
    names = _names_to_mask(mails, cleaned, config)
    examples = [make_example(mail, config, names) for mail in in_time_order(cleaned.mails)]
    retrain = retrain or Retrain()
    train, held_out, old = split_retrain(examples, config, retrain)
    counted = _count(mails, sent or len(mails), drafted, cleaned, config, retrain)
    return Prepared(train, held_out, _report(counted, cleaned, train, held_out), old)


def examples_of(mails: Sequence[Mail], config: DataConfig) -> tuple[Example, ...]:
    """Clean `mails` and make an example of each that is kept, in time order, without a split or masks."""
    return tuple(make_example(mail, config) for mail in in_time_order(_clean(mails, config).mails))


def require_enough(report: DataReport, config: DataConfig, *, only_new: bool = False) -> None:
    """Raise NotEnoughMail with the report's own sentence when it is not eligible."""
    if not report.eligible:
        needed = config.min_usable_new if only_new else config.min_usable
        raise NotEnoughMail(report.reason, found=report.usable, needed=needed)


def make_example(mail: CleanMail, config: DataConfig, names: frozenset[str] = frozenset()) -> Example:
    """Turn one cleaned mail into an example: the instruction says what the app would have asked.

    `names` are the third persons of the mailbox (`training.mail.third_persons.learn_names`).
    """
    from training.mail.third_persons import find_third_persons

    # A forward quotes a message too, but its author answers nobody.
    context = _first_words(mail.answered_text, config.max_context_words) if mail.is_reply else ""
    about = f" about: {mail.subject}" if mail.subject else ""
    if context:
        instruction = "Write a reply to the email below" + (
            f", subject: {mail.subject}" if mail.subject else "."
        )
    elif mail.is_reply:
        instruction = f"Write a reply{about or '.'}"
    else:
        instruction = f"Write an email{about or '.'}"
    output = without_markup(mail.own_words)
    return Example(
        id=mail.id,
        thread_id=mail.thread_id,
        sent_at=mail.sent_at,
        instruction=instruction,
        input=context,
        output=output,
        masked=find_third_persons(output, names) if config.mask_third_persons else (),
    )


def _clean(
    mails: Sequence[Mail], config: DataConfig, on_progress: Callable[[int, int], None] | None = None
) -> CleanedMailbox:
    # Imported here: the GPU side uses this module for its JSONL and tokens and needs no mail libraries.
    from training.mail.clean import clean_mailbox

    return clean_mailbox(
        mails,
        language=config.language,
        min_words=config.min_words,
        max_words=config.max_words,
        on_progress=on_progress,
    )


def _names_to_mask(mails: Sequence[Mail], cleaned: CleanedMailbox, config: DataConfig) -> frozenset[str]:
    from training.mail.third_persons import learn_names

    if not config.mask_third_persons:
        return frozenset()
    return learn_names(mails, [mail.own_words for mail in cleaned.mails])


def without_markup(text: str) -> str:
    """Return `text` with chat markup such as `<|im_end|>` made harmless: a mail must not open a turn."""
    return text.replace("<|", "< |")


def prompt_messages(instruction: str, context: str = "") -> list[ChatMessage]:
    """Return the system and user messages of a request, in training and in serving alike."""
    content = f"{instruction}\n\n{context}" if context else instruction
    return [
        ChatMessage(role="system", content=SYSTEM_MESSAGE),
        ChatMessage(role="user", content=without_markup(content)),
    ]


def encode(example: Example, tokenizer: PreTrainedTokenizerFast, max_seq_tokens: int) -> EncodedExample:
    """Tokenise one example: prompt and reply apart, as in serving, where the reply starts a new token.

    The reply ends with the template's end-of-turn token. What exceeds `max_seq_tokens` is cut: the
    prompt's answered message first (down to half the room), then the end of the reply.
    """
    messages = prompt_messages(example.instruction, example.input)
    template = ChatTemplate.of(tokenizer)
    prompt = template.render(messages)
    answer = ChatMessage(role="assistant", content=example.output)
    whole = template.render([*messages, answer], add_generation_prompt=False)
    if not whole.startswith(prompt):
        raise ConfigError("The chat template does not continue its own prompt; it cannot be trained with.")
    reply = whole[len(prompt) :].rstrip("\n")
    tokens = tokenizer(reply, add_special_tokens=False, return_offsets_mapping=bool(example.masked))
    reply_ids = tokens["input_ids"]
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    room = max_seq_tokens - min(len(reply_ids), max_seq_tokens // 2)
    if len(prompt_ids) > room:
        # Keep the template's head and tail whole and drop from the middle, where the context stands.
        head, tail = prompt_ids[: room // 2], prompt_ids[-(room - room // 2) :]
        prompt_ids = [*head, *tail]
    ids = [*prompt_ids, *reply_ids][:max_seq_tokens]
    masked = _masked_tokens(example, reply, tokens["offset_mapping"]) if example.masked else []
    return EncodedExample(
        example.id,
        example.thread_id,
        tuple(ids),
        len(prompt_ids),
        tuple(len(prompt_ids) + n for n in masked if len(prompt_ids) + n < len(ids)),
    )


def _masked_tokens(example: Example, reply: str, offsets: Sequence[tuple[int, int]]) -> list[int]:
    """Return the numbers of the reply's tokens that hold any character of `example.masked`."""
    bare = example.output.strip()  # templates trim what they are given
    shift = reply.find(bare) - (len(example.output) - len(example.output.lstrip()))
    if bare not in reply:
        raise ConfigError(
            "The chat template changes the reply, so third persons cannot be found in it. Train with another "
            "base model, or set data.mask_third_persons to false."
        )
    found, at = [], 0
    spans = [(start + shift, end + shift) for start, end in example.masked]
    for number, (start, end) in enumerate(offsets):
        while at < len(spans) and spans[at][1] <= start:
            at += 1
        if at < len(spans) and end > spans[at][0] and end > start:
            found.append(number)
    return found


def in_time_order(mails: Iterable[CleanMail]) -> list[CleanMail]:
    """Sort by time; undated mail keeps its place after the dated mail that precedes it in the source."""
    latest = datetime.min.replace(tzinfo=UTC)
    keyed = []
    for mail in sorted(mails, key=lambda m: m.position):
        latest = mail.sent_at or latest
        keyed.append((latest, mail.position, mail))
    return [mail for _, _, mail in sorted(keyed, key=lambda key: key[:2])]


def split_held_out(
    examples: Sequence[Example], config: DataConfig
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Hold out the newest threads, whole, until about `held_out_fraction` of the examples is out.

    `examples` must be in time order. A thread stands where its newest mail stands and is never cut, so no
    held-out mail answers a conversation that was trained on; a thread that would push the held-out part
    above `max_held_out` stays in training. So do threads that would be more than a quarter of it, where
    others fill it: skill on one conversation says little about any other, and the gate asks for ten
    (`min_held_out_threads`). Returns (train, held out), both in time order.
    """
    threads: dict[str, list[Example]] = {}
    for example in examples:
        threads.setdefault(example.thread_id, []).append(example)
    place = {id(example): n for n, example in enumerate(examples)}
    newest_first = sorted(threads.values(), key=lambda t: place[id(t[-1])], reverse=True)
    wanted = round(len(examples) * config.held_out_fraction)
    wanted = min(max(wanted, config.min_held_out), config.max_held_out, len(examples) // 2)
    room = max(wanted, min(config.max_held_out, len(examples) // 2))
    # Two mails of a thread are no long conversation, however few are held out.
    long = max(2, wanted // 4) + 1
    out: set[str] = set()
    held_out_count = 0
    for thread in (*(t for t in newest_first if len(t) < long), *(t for t in newest_first if len(t) >= long)):
        if held_out_count >= wanted:
            break
        if held_out_count + len(thread) <= room:
            out.add(thread[0].thread_id)
            held_out_count += len(thread)
    train = tuple(e for e in examples if e.thread_id not in out)
    held_out = tuple(e for e in examples if e.thread_id in out)
    return train, held_out


def split_retrain(
    examples: Sequence[Example], config: DataConfig, retrain: Retrain
) -> tuple[tuple[Example, ...], tuple[Example, ...], tuple[Example, ...]]:
    """Return (train, held out, old) of examples in time order; a first training has no old ones.

    The adapter in use has learnt every older thread, and would win on them: the candidate is compared with
    it on threads that neither saw. These are the newest of the unseen threads and, where they make fewer
    than `min_held_out` mails, the newest mails of the old set. Without either, the newest threads of all.
    """
    old_threads, old_mails = set(retrain.old.threads), set(retrain.old.mails)
    old = tuple(e for e in examples if hash_id(e.id) in old_mails)
    pool = [e for e in examples if hash_id(e.thread_id) not in old_threads and hash_id(e.id) not in old_mails]
    unseen_threads = {e.thread_id for e in pool if retrain.unseen is None or e.id in retrain.unseen}
    _, held_out = split_held_out([e for e in pool if e.thread_id in unseen_threads], config)
    missing = max(0, config.min_held_out - len(held_out)) if old else 0
    borrowed = old[-missing:] if missing else ()
    if len(held_out) + len(borrowed) < config.min_held_out:
        _, newest = split_held_out(pool, config)
        held_out = max(held_out, newest, key=len)
    out = {e.thread_id for e in held_out}
    return tuple(e for e in pool if e.thread_id not in out), (*borrowed, *held_out), old


def to_jsonl(examples: Iterable[Example]) -> str:
    """Return Alpaca JSONL, one example a line: instruction, input, output; id, threadId, sentAt, masked."""
    return "".join(json.dumps(e.to_json_dict(), ensure_ascii=False) + "\n" for e in examples)


def from_jsonl(text: str) -> list[Example]:
    """Read what `to_jsonl` wrote. Raises ConfigError with the line's number, never with its text."""
    examples = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            examples.append(Example.model_validate_json(line))
        except ValidationError:
            raise ConfigError(
                f"Line {number} of the data set is not an Alpaca example (instruction, input, output)."
            ) from None
    return examples


@dataclass(frozen=True)
class _Counted:
    """The numbers of a report, about all mail that was read or about the new alone."""

    sent: int
    read: int
    usable: int
    needed: int
    dropped: dict[DropReason, int]
    only_new: bool
    newest: bool
    """What was read are the newest mails: a retrain may have drawn older ones."""


def _count(
    mails: Sequence[Mail],
    sent: int,
    drafted: int,
    cleaned: CleanedMailbox,
    config: DataConfig,
    retrain: Retrain,
) -> _Counted:
    old_mails = set(retrain.old.mails) if retrain.only_new else set()
    old = {m.id for m in mails if hash_id(m.id) in old_mails}
    dropped = Counter(cleaned.dropped)
    dropped.subtract(reason for id, reason in cleaned.drop_of.items() if id in old)
    dropped[DropReason.AI_GENERATED] += drafted
    dropped = +dropped  # without those that are 0 now
    return _Counted(
        sent=sent,
        read=len(mails) - len(old) + drafted,
        usable=sum(m.id not in old for m in cleaned.mails),
        needed=config.min_usable_new if retrain.only_new else config.min_usable,
        dropped=dict(sorted(dropped.items(), key=lambda item: -item[1])),
        only_new=retrain.only_new,
        newest=retrain.unseen is None,
    )


def _report(
    counted: _Counted, cleaned: CleanedMailbox, train: Sequence[Example], held_out: Sequence[Example]
) -> DataReport:
    provable = bool(train) and bool(held_out)
    return DataReport(
        sent=counted.sent,
        usable=counted.usable,
        dropped=counted.dropped,
        languages=cleaned.languages,
        replaced_secrets=cleaned.replaced_secrets,
        masked_third_persons=sum(len(e.masked) for e in train),
        train=len(train),
        held_out=len(held_out),
        own_words=sum(len(e.output.split()) for e in (*train, *held_out)),
        eligible=counted.usable >= counted.needed and not cleaned.machine_written and provable,
        reason=_sentence(counted, cleaned, provable),
    )


def _sentence(counted: _Counted, cleaned: CleanedMailbox, provable: bool) -> str:
    """Say in one sentence what was found and, when it is not enough, what is missing."""
    sent, read, usable, needed = counted.sent, counted.read, counted.usable, counted.needed
    if sent == 0:
        return (
            f"No sent mail was found; {needed} usable sent mails are needed. "
            "Import a mailbox first (ownvoice import PATH --user EMAIL)."
        )
    mails = "1 sent mail" if sent == 1 else f"{sent} sent mails"
    which = "the newest " if counted.newest else ""
    kind, newest = "sent mails", f" ({which}{read} were read)" if read < sent else ""
    if counted.only_new:
        kind, newest = "new sent mails", f", {read} of them new since your adapter was trained"
    if cleaned.machine_written:
        return (
            f"You have {mails}{newest}, but they look written by a machine, not by a person: "
            f"{cleaned.machine_reason}."
        )
    enough = f"{usable} of {read} {kind} are usable{'' if counted.only_new else newest}"
    if usable >= needed and not provable:
        return (
            f"{enough}, but one conversation holds most of them: "
            "no other can be held out to prove an adapter on. Import mail from more conversations."
        )
    if usable >= needed:
        return f"{enough}; {needed} are needed."
    top = list(counted.dropped.items())[:3]
    causes = ", ".join(f"{n} {'is' if n == 1 else 'are'} {_adjective(r)}" for r, n in top)
    found = f"{needed} usable ones are needed, {usable} {'was' if usable == 1 else 'were'} found"
    more = f": {needed - usable} more are needed"
    more += ", or train with the mode replay" if counted.only_new else ""
    return f"You have {mails}{newest}" + (f", but {causes}; " if causes else "; ") + found + more + "."


def _adjective(reason: DropReason) -> str:
    """Return words that follow both "1 is" and "121 are"."""
    return {
        DropReason.EMPTY: "empty",
        DropReason.AUTO_REPLY: "automatic",
        DropReason.BOUNCE: "from a mail server",
        DropReason.CALENDAR: "from a calendar",
        DropReason.MACHINE: "written by a machine",
        DropReason.LIST: "sent by a mailing list",
        DropReason.AI_GENERATED: "drafted by the AI",
        DropReason.FORWARD_ONLY: "forwarded without words of yours",
        DropReason.QUOTE_ONLY: "quoted without words of yours",
        DropReason.UNCLEAR_QUOTE: "mixed with quotes that cannot be told apart",
        DropReason.TOO_SHORT: "too short",
        DropReason.TOO_LONG: "too long for a mail",
        DropReason.WRONG_LANGUAGE: "in another language",
        DropReason.NEAR_DUPLICATE: "nearly the same as another",
        DropReason.SECRET: "mostly secret",
    }[reason]


def _first_words(text: str, limit: int) -> str:
    """Return `text` cut after `limit` words, its line breaks kept."""
    count = 0
    lines = []
    for line in text.strip().split("\n"):
        words = line.split()
        if count + len(words) > limit:
            lines.append(" ".join(words[: limit - count]))
            break
        count += len(words)
        lines.append(line.strip())
    return "\n".join(lines).strip()
