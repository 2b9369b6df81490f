"""From cleaned mail to training examples: instruction, chat template, held-out split, Alpaca JSONL.

The order of events in one job: `prepare` (clean → examples → split → judge) on the CPU side, the two
JSONL files through storage, `encode` on the GPU side.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Prepared:
    """A mailbox turned into training data, and the report about it."""

    train: tuple[Example, ...]
    held_out: tuple[Example, ...]
    report: DataReport


@dataclass(frozen=True)
class EncodedExample:
    """Token ids of one example; `input_ids[prompt_length:]` is the reply, the only training target."""

    id: str
    thread_id: str
    input_ids: tuple[int, ...]
    prompt_length: int

    @property
    def reply_length(self) -> int:
        return len(self.input_ids) - self.prompt_length


def prepare(
    mails: Sequence[Mail],
    config: DataConfig,
    *,
    sent: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Prepared:
    """Clean `mails`, make examples, split them and judge whether they are enough. Never raises for bad mail.

    `sent` is how many sent mails the user has in all, when only the newest were read.
    """
    # Imported here: the GPU side uses this module for its JSONL and tokens and needs no mail libraries.
    from training.mail.clean import clean_mailbox

    cleaned = clean_mailbox(
        mails,
        language=config.language,
        min_words=config.min_words,
        max_words=config.max_words,
        on_progress=on_progress,
    )
    examples = [make_example(mail, config) for mail in in_time_order(cleaned.mails)]
    train, held_out = split_held_out(examples, config)
    return Prepared(
        train, held_out, _report(len(mails), sent or len(mails), cleaned, train, held_out, config)
    )


def require_enough(report: DataReport, config: DataConfig) -> None:
    """Raise NotEnoughMail with the report's own sentence when it is not eligible."""
    if not report.eligible:
        raise NotEnoughMail(report.reason, found=report.usable, needed=config.min_usable)


def make_example(mail: CleanMail, config: DataConfig) -> Example:
    """Turn one cleaned mail into an example: the instruction says what the app would have asked."""
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
    return Example(
        id=mail.id,
        thread_id=mail.thread_id,
        sent_at=mail.sent_at,
        instruction=instruction,
        input=context,
        output=without_markup(mail.own_words),
    )


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
    reply_ids = tokenizer(whole[len(prompt) :].rstrip("\n"), add_special_tokens=False)["input_ids"]
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    room = max_seq_tokens - min(len(reply_ids), max_seq_tokens // 2)
    if len(prompt_ids) > room:
        # Keep the template's head and tail whole and drop from the middle, where the context stands.
        head, tail = prompt_ids[: room // 2], prompt_ids[-(room - room // 2) :]
        prompt_ids = [*head, *tail]
    ids = [*prompt_ids, *reply_ids][:max_seq_tokens]
    return EncodedExample(example.id, example.thread_id, tuple(ids), len(prompt_ids))


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
    above `max_held_out` stays in training. Returns (train, held out), both in time order.
    """
    threads: dict[str, list[Example]] = {}
    for example in examples:
        threads.setdefault(example.thread_id, []).append(example)
    place = {id(example): n for n, example in enumerate(examples)}
    newest_first = sorted(threads.values(), key=lambda t: place[id(t[-1])], reverse=True)
    wanted = round(len(examples) * config.held_out_fraction)
    wanted = min(max(wanted, config.min_held_out), config.max_held_out, len(examples) // 2)
    out: set[str] = set()
    held_out_count = 0
    for thread in newest_first:
        if held_out_count >= wanted:
            break
        if held_out_count + len(thread) <= max(wanted, min(config.max_held_out, len(examples) // 2)):
            out.add(thread[0].thread_id)
            held_out_count += len(thread)
    train = tuple(e for e in examples if e.thread_id not in out)
    held_out = tuple(e for e in examples if e.thread_id in out)
    return train, held_out


def to_jsonl(examples: Iterable[Example]) -> str:
    """Return Alpaca JSONL, one example a line: `instruction`, `input`, `output`; id, threadId, sentAt."""
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


def _report(
    read: int,
    sent: int,
    cleaned: CleanedMailbox,
    train: Sequence[Example],
    held_out: Sequence[Example],
    config: DataConfig,
) -> DataReport:
    usable = len(cleaned.mails)
    eligible = usable >= config.min_usable and not cleaned.machine_written and bool(held_out)
    return DataReport(
        sent=sent,
        usable=usable,
        dropped=dict(sorted(cleaned.dropped.items(), key=lambda item: -item[1])),
        languages=cleaned.languages,
        replaced_secrets=cleaned.replaced_secrets,
        train=len(train),
        held_out=len(held_out),
        own_words=sum(len(e.output.split()) for e in (*train, *held_out)),
        eligible=eligible,
        reason=_sentence(sent, read, usable, cleaned, config, bool(held_out)),
    )


def _sentence(
    sent: int, read: int, usable: int, cleaned: CleanedMailbox, config: DataConfig, provable: bool
) -> str:
    """Say in one sentence what was found and, when it is not enough, what is missing."""
    if sent == 0:
        return (
            f"No sent mail was found; {config.min_usable} usable sent mails are needed. "
            "Import a mailbox first (ownvoice import PATH --user EMAIL)."
        )
    mails = "1 sent mail" if sent == 1 else f"{sent} sent mails"
    newest = f" (the newest {read} were read)" if read < sent else ""
    if cleaned.machine_written:
        return (
            f"You have {mails}{newest}, but they look written by a machine, not by a person: "
            f"{cleaned.machine_reason}."
        )
    if usable >= config.min_usable and not provable:
        return (
            f"{usable} of {read} sent mails are usable{newest}, but one conversation holds most of them: "
            "no other can be held out to prove an adapter on. Import mail from more conversations."
        )
    if usable >= config.min_usable:
        return f"{usable} of {read} sent mails are usable{newest}; {config.min_usable} are needed."
    top = sorted(cleaned.dropped.items(), key=lambda item: -item[1])[:3]
    causes = ", ".join(f"{n} {'is' if n == 1 else 'are'} {_adjective(r)}" for r, n in top)
    found = f"{config.min_usable} usable ones are needed, {usable} {'was' if usable == 1 else 'were'} found"
    more = f": {config.min_usable - usable} more are needed"
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
