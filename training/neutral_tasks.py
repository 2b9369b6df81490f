"""Ten neutral tasks that have nothing to do with anybody's mail: does an adapter still do ordinary work?

Metric 5c of the gate measures the loss of their fixed answers, once under their own prompts and once under
another task's: what lies between is the use that a model makes of its prompt. An adapter that only learnt a
voice makes both less probable and keeps the distance (training/harm.py, `prompt_use`).
"""

from __future__ import annotations

from training.schemas import Example

_TASKS: tuple[tuple[str, str, str], ...] = (
    (
        "Summarise the text below in one sentence.",
        "The library will close at noon on Friday so that the heating can be repaired. It opens again on "
        "Monday at nine. Books that are due on Saturday may be returned on Tuesday without a fee.",
        "The library is closed from Friday noon until Monday at nine for heating repairs, and books due on "
        "Saturday can be returned on Tuesday without a fee.",
    ),
    (
        "Translate into French: The train to Lyon leaves at half past eight.",
        "",
        "Le train pour Lyon part à huit heures et demie.",
    ),
    (
        "List three things to check before a long drive.",
        "",
        "1. The pressure of the tyres.\n2. The level of the oil.\n3. That all lights work.",
    ),
    (
        "Correct the spelling: The comittee will recieve the accomodation list tommorow.",
        "",
        "The committee will receive the accommodation list tomorrow.",
    ),
    (
        "Explain in two sentences why the sky is blue.",
        "",
        "Sunlight is scattered by the molecules of the air, and blue light is scattered more strongly than "
        "red. That is why blue light reaches our eyes from every part of the sky.",
    ),
    (
        "What is 17 plus 26? Answer with a sentence.",
        "",
        "17 plus 26 is 43.",
    ),
    (
        "Turn the notes below into one polite paragraph.",
        "parcel not arrived, ordered 3 May, number 5512, want date or refund",
        "I ordered parcel number 5512 on 3 May, and it has not arrived yet. Could you please tell me the "
        "date of delivery, or refund the payment?",
    ),
    (
        "Name the capital cities of Norway, Portugal and Japan.",
        "",
        "The capital of Norway is Oslo, that of Portugal is Lisbon, and that of Japan is Tokyo.",
    ),
    (
        "Write a short recipe for boiled rice.",
        "",
        "Rinse one cup of rice under cold water. Put it into a pot with two cups of water and a pinch of "
        "salt. Bring it to the boil, cover the pot, and let it simmer on low heat for fifteen minutes.",
    ),
    (
        "Is the review below positive or negative? Answer with one word.",
        "The room was clean, the staff were friendly, and the breakfast was the best of our whole trip.",
        "Positive",
    ),
)  # fmt: skip


def neutral_examples() -> tuple[Example, ...]:
    """Return the ten tasks as examples; each is a thread of its own."""
    return tuple(
        Example(
            id=f"neutral-{number}",
            thread_id=f"neutral-{number}",
            instruction=instruction,
            input=text,
            output=answer,
        )
        for number, (instruction, text, answer) in enumerate(_TASKS, start=1)
    )


def swapped_examples() -> tuple[Example, ...]:
    """Return the ten answers, each under the prompt of a task three places before; ids are the answers'."""
    tasks = neutral_examples()
    return tuple(
        task.model_copy(update={"instruction": other.instruction, "input": other.input})
        for task, other in zip(tasks, (*tasks[-3:], *tasks[:-3]), strict=True)
    )
