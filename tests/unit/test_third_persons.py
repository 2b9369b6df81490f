"""Other people's names, addresses and numbers: in a mail, and the tokens that are not trained on."""

from __future__ import annotations

import time

import pytest

from tests.bases import tiny_tokenizer
from training.config import DataConfig
from training.dataset import encode, from_jsonl, prepare, to_jsonl
from training.errors import ConfigError
from training.mail.third_persons import find_third_persons, learn_names, name_words
from training.schemas import Example, Mail

NAMES = frozenset({"bob", "lee", "zoë", "mcguire"})


def mail(
    number: int, *to: str, sender: str = "Anna Tolquay <anna.tolquay@x.example>", body: str = ""
) -> Mail:
    return Mail(
        id=f"m{number}", thread_id=f"t{number}", position=number, sender=sender, to=to, body_text=body
    )


def masked(text: str, names: frozenset[str] = NAMES) -> list[str]:
    return [text[start:end] for start, end in find_third_persons(text, names)]


# ---- whose names -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("Bob Lee <blee@x.example>", ["blee", "bob", "lee"]),
        ("bob.lee@x.example", ["bob", "lee"]),
        ("Lee, Bob", ["lee", "bob"]),
        ("Elena Kagan CN=Elena Kagan/OU=OPD/O=EOP @ EOP [ OPD ) )", ["elena", "kagan"]),
        ("Bob Lee/HOU/ECT@ECT", ["bob", "lee"]),
        ("bob_lee99@x.example", ["bob", "lee"]),
        ("Zoë Ó Briain", ["zoë", "briain"]),
        ("The Harbour Office Weekly News Team <news@x.example>", ["news"]),
        ("", []),
    ],
)
def test_an_address_header_names_its_person(entry: str, words: list[str]) -> None:
    assert sorted(set(name_words(entry))) == sorted(set(words))


def test_the_author_is_no_third_person() -> None:
    names = learn_names([mail(1, "Anna Smith <smith@y.example>", "bob@y.example")], ["Bob, Anna is here."])
    assert names == {"smith", "bob"}


def test_a_word_that_the_author_writes_small_stays_a_word() -> None:
    mails = [mail(1, "Will Mark <w@x.example>")]
    texts = [
        "I will be there, we will see. Will it rain?",
        "Mark said so. Mark and Mark's boat; mark my words.",
    ]
    names = learn_names(mails, texts)
    assert names == {"mark", "Will"}
    # It is a name where nothing else can stand: in a greeting, and with a capital within a sentence.
    assert masked("Hi Will,\nthe planks are here.", names) == ["Will"]
    assert masked("I told Will that it will rain. Will it?", names) == ["Will"]


def test_who_is_greeted_is_a_third_person_without_any_header() -> None:
    texts = [
        "Hi bob and Zoë,\nall well?",
        "Quincy,\nsee you",
        "Dear all,\nhello",
        "FYI -\nthe plan",
        "Lieber Uwe!\nja",
    ]
    assert learn_names([mail(1)], texts) == {"bob", "zoë", "quincy", "uwe"}
    assert masked(texts[0], frozenset({"bob"})) == ["bob"]


def test_a_company_is_no_person() -> None:
    people = ("Palombia Office <a@mail.palombia.example>", "bob@mail.palombia.example", "Lee <a@lee.example>")
    assert learn_names([mail(1, *people)], []) == {"bob", "lee"}


@pytest.mark.parametrize(
    "greeting", ["Hallo zusammen,", "Sehr geehrte Damen und Herren,", "Liebe Kollegen,", "Dear Customer,"]
)
def test_who_greets_everybody_names_nobody(greeting: str) -> None:
    assert learn_names([mail(1)], [f"{greeting}\nall well?"]) == set()


def test_particles_are_no_words_of_a_name() -> None:
    assert "garcía" in learn_names([mail(1, "María del Carmen García López <m@x.example>")], [])


# ---- where they stand --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Ask Bob, or BOB's brother.", ["Bob", "BOB"]),
        ("Tell Bob N. Lee and Zoë.", ["Bob N. Lee", "Zoë"]),
        ("we bob along in the lee", []),
        ("Mr. Harkness and Dr Osei-Bonsu know; Frau Dr. Müller too.", ["Harkness", "Osei-Bonsu", "Müller"]),
        ("Mr. President, Madame Speaker", []),
        ("write to tom+x@y.example or Anna.T@mail.y.example.", ["tom+x@y.example", "Anna.T@mail.y.example"]),
        ("call +44 20 7946 0958 or (713) 853-3105.", ["+44 20 7946 0958", "(713) 853-3105"]),
        ("ring 415.782.7822, home 514-1900", ["415.782.7822", "514-1900"]),
        ("07700 900123 or 07700900123", ["07700 900123", "07700900123"]),
        ("0171/2345678, +49 (0)171 2345678", ["0171/2345678", "+49 (0)171 2345678"]),
        ("06 12 34 56 78 or +33612345678", ["06 12 34 56 78", "+33612345678"]),
        ("1-800-555-0199, 333 1234567, 2125550187", ["1-800-555-0199", "333 1234567", "2125550187"]),
        ("in 2010 2011 2012, on 17 05 2024, 10.30-11.45, 2024 1200 people", []),
        ("1200 1500 1800, 40 50 60 70, 192.168.1.14, ISBN 978-3-16-148410-0", []),
        ("Dear Mr O'Connor, dear DR PATEL", ["O'Connor", "PATEL"]),
        ("on 2026-03-04, 04.03.2026 or 10-11-2026 at 10:30", []),
        ("1500-2000 or 1997-1998, zip 77002-1234, 1 000 000 and 1.000.000", []),
        ("", []),
    ],
)
def test_names_addresses_and_numbers_are_found(text: str, found: list[str]) -> None:
    assert masked(text) == found


BAITS = {
    "names": "Bob Lee " * 120_000,
    "capitals": "Aa" * 500_000,
    "titles": "Mr. Aa " * 140_000,
    "digits": "1" * 1_000_000,
    "groups": "123-" * 250_000,
    "numbers": "07700 900123 " * 80_000,
    "brackets": "(1)" * 330_000,
    "at signs": "a@" * 500_000,
    "dots": "a.a@b." * 160_000,
    "greetings": "hi a\n" * 200_000,
    "blanks": " " * 1_000_000 + "Bob",
}


@pytest.mark.parametrize("bait", BAITS)
def test_a_million_hostile_characters_cost_little(bait: str) -> None:
    started = time.process_time()
    find_third_persons(BAITS[bait], learn_names([mail(1, BAITS[bait])], [BAITS[bait]]) | NAMES)
    assert time.process_time() - started < 8  # 0.1–1 s of processor time; quadratic would be minutes


# ---- to the data set and to the tokens ---------------------------------------------------------------

TOPICS = (
    "budget",
    "garden",
    "server",
    "holiday",
    "contract",
    "kitchen",
    "printer",
    "seminar",
    "museum",
    "choir",
)


def mailbox() -> list[Mail]:
    return [
        mail(
            n, "Bob Lee <bob@y.example>",
            body=f"Hi Bob,\n\nI saw the {topic} with Zoë now; call 713-853-3105 about that {topic}.\n\nAnna",
        )
        for n, topic in enumerate(TOPICS)
    ]  # fmt: skip


def test_the_data_set_says_what_is_left_out_unless_switched_off() -> None:
    on = prepare(mailbox(), DataConfig(min_usable=10))
    example = from_jsonl(to_jsonl(on.train))[0]
    assert [example.output[a:b] for a, b in example.masked] == ["Bob", "713-853-3105"]
    assert on.report.masked_third_persons == sum(len(e.masked) for e in on.train) == 2 * len(on.train)
    off = prepare(mailbox(), DataConfig(min_usable=10, mask_third_persons=False))
    assert off.report.masked_third_persons == 0 and not any(e.masked for e in off.train)
    assert [e.output for e in off.train] == [e.output for e in on.train]


def test_an_older_data_set_without_spans_is_still_read() -> None:
    line = '{"id": "m", "threadId": "t", "instruction": "Write.", "output": "Hi Bob"}'
    assert from_jsonl(line)[0].masked == ()


def example_of(output: str, *names: str) -> Example:
    spans = tuple((output.index(name), output.index(name) + len(name)) for name in names)
    return Example(id="m", thread_id="t", instruction="Write.", output=output, masked=spans)


@pytest.mark.parametrize(
    ("output", "names"),
    [
        ("Hi Bob, is Zoë there? Ask bob@y.example.", ("Bob", "Zoë", "bob@y.example")),
        ("Bob", ("Bob",)),
        ("👋 Zoë 日本 Bob", ("Zoë", "Bob")),
        ("  Bob,\n\n  see you  ", ("Bob",)),
    ],
)
def test_exactly_the_tokens_that_hold_a_name_are_no_targets(output: str, names: tuple[str, ...]) -> None:
    tokenizer = tiny_tokenizer()
    encoded = encode(example_of(output, *names), tokenizer, 1024)
    plain = encode(example_of(output), tokenizer, 1024)
    assert encoded.input_ids == plain.input_ids and plain.masked == ()
    assert all(encoded.prompt_length <= at < len(encoded.input_ids) - 1 for at in encoded.masked)
    # The tiny tokenizer knows single bytes and a few words: what is masked decodes to the names themselves.
    left_out = tokenizer.decode([encoded.input_ids[at] for at in encoded.masked])
    assert left_out.replace(" ", "") == "".join(names)


def test_a_name_beyond_the_longest_sequence_is_not_missed_elsewhere() -> None:
    encoded = encode(example_of("Hi Zoë, " + "r" * 9_000 + " Bob", "Zoë", "Bob"), tiny_tokenizer(), 256)
    assert len(encoded.input_ids) == 256
    assert encoded.masked and max(encoded.masked) < encoded.prompt_length + 8


def test_a_template_that_rewrites_the_reply_cannot_be_masked_and_says_so() -> None:
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{{ m.content | upper if m.role == 'assistant' else m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    assert encode(example_of("Hi Bob"), tiny_tokenizer(template), 1024).masked == ()
    with pytest.raises(ConfigError, match="mask_third_persons"):
        encode(example_of("Hi Bob", "Bob"), tiny_tokenizer(template), 1024)
