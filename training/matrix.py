"""The cross matrix: the loss of every adapter on every mailbox, on mail that no adapter of it was trained on.

An adapter that learnt a person, and not just mail, has the lowest loss in its person's column: the diagonal
wins. (references/voice.md §3, metric 2)
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from training.config import DataConfig
from training.dataset import OldSet, Retrain, hash_id, prepare
from training.evidence import chosen_prompts
from training.schemas import Example, Mail, Schema

MIN_UNSEEN = 10
"""Mails of a mailbox below which a mean loss says more about them than about the adapter."""
MAX_UNSEEN = 60
"""Mails of a mailbox that are measured on, as many as a job holds out at most."""
MIN_USABLE = 100
"""Usable mails from which the diagonal must win."""


@dataclass(frozen=True)
class Unseen:
    """Mails of one person that their adapter never saw; in memory only."""

    examples: tuple[Example, ...]
    old: int
    """Of the frozen held-out set of the first training, among `examples`."""
    new: int
    """That arrived after the adapter was trained, in conversations that it knows nothing of."""
    found: int
    """All that could have been measured on; an even sample of them is."""
    usable: int
    """Mails of the person that training could use."""


class MatrixColumn(Schema):
    """One mailbox, and which of its mails are measured on."""

    user_id: str
    email: str
    usable: int
    old: int
    new: int

    @property
    def mails(self) -> int:
        return self.old + self.new

    @property
    def counts(self) -> bool:
        """There is mail enough for its diagonal to decide."""
        return self.usable >= MIN_USABLE


class MatrixRow(Schema):
    """One adapter, or the base."""

    user_id: str | None = None
    """None: the base."""
    title: str
    version: int | None = None
    losses: tuple[float | None, ...]
    """Mean over the reply tokens of a column's mails, nat per token; None: not a number."""


class CrossMatrix(Schema):
    """Rows are the base and the adapters, columns the mailboxes, in the order of the users."""

    base_model: str
    columns: tuple[MatrixColumn, ...]
    rows: tuple[MatrixRow, ...]

    def lowest(self, column: int) -> float | None:
        """Return the lowest loss of a column, None when none is a number."""
        return min((loss for row in self.rows if (loss := row.losses[column]) is not None), default=None)

    def wins(self, column: int) -> bool:
        """Tell whether the person's own adapter has the lowest loss of the column, alone."""
        owner, best = self.columns[column].user_id, self.lowest(column)
        return best is not None and [r.user_id for r in self.rows if r.losses[column] == best] == [owner]

    @property
    def lost(self) -> tuple[int, ...]:
        """Columns that count and that their own adapter does not win."""
        return tuple(n for n, column in enumerate(self.columns) if column.counts and not self.wins(n))

    @property
    def verdict(self) -> bool | None:
        """Whether the diagonal wins; None when no mailbox is large enough to decide."""
        return not self.lost if any(column.counts for column in self.columns) else None

    @property
    def sentence(self) -> str:
        """The verdict for a person."""
        counting = sum(column.counts for column in self.columns)
        if not counting:
            return f"Nothing is decided: no mailbox of {len(self.columns)} has {MIN_USABLE} usable mails."
        if self.lost:
            names = ", ".join(self.columns[n].email for n in self.lost)
            return (
                f"The diagonal does not win for {len(self.lost)} of {counting} mailboxes with at least "
                f"{MIN_USABLE} usable mails: {names}. Train those again, with more mail."
            )
        few = len(self.columns) - counting
        aside = (
            f" {few} smaller {'mailbox decides' if few == 1 else 'mailboxes decide'} nothing." if few else ""
        )
        which = "the one mailbox" if counting == 1 else f"all {counting} mailboxes"
        return f"The diagonal wins for {which} with at least {MIN_USABLE} usable mails.{aside}"


def choose_unseen(
    mails: Sequence[Mail], arrived: Collection[str], old: OldSet, data: DataConfig, most: int = MAX_UNSEEN
) -> Unseen:
    """Clean `mails` as a training does and choose those that the adapter never saw.

    `old` is the frozen set that the adapter's job carried: no training of the person ever used it. `arrived`
    holds the ids of mails that came later, in threads without a mail that was there then. `mails` must hold
    them all, and the person's other mail as well: endings and duplicates are learnt from the whole.
    """
    prepared = prepare(mails, data, retrain=Retrain(old=old))
    later, frozen = set(arrived), set(old.mails)
    examples = {e.id: e for e in (*prepared.train, *prepared.held_out, *prepared.old)}
    # By arrival, so that an even sample is even over the time that the mails span.
    unseen = [
        examples[mail.id]
        for mail in sorted(mails, key=lambda mail: mail.position)
        if mail.id in examples and (mail.id in later or hash_id(mail.id) in frozen)
    ]
    chosen = chosen_prompts(unseen, most)
    new = sum(e.id in later for e in chosen)
    return Unseen(chosen, len(chosen) - new, new, len(unseen), prepared.report.usable)


def matrix_markdown(matrix: CrossMatrix) -> str:
    """Return the matrix as a Markdown page; the lowest loss of each column is bold."""
    names = [column.email.replace("|", "\\|") for column in matrix.columns]
    lines = [
        f"Mean loss on held-out mail, nat per reply token, base model {matrix.base_model}.",
        "",
        f"| adapter | {' | '.join(names)} |",
        f"|---|{'---:|' * len(names)}",
        *(
            "| " + " | ".join([row.title.replace("|", "\\|"), *_cells(matrix, row)]) + " |"
            for row in matrix.rows
        ),
        "",
        *(f"- {describe_column(column)}" for column in matrix.columns),
        "",
        matrix.sentence,
        "",
    ]
    return "\n".join(lines)


def describe_column(column: MatrixColumn) -> str:
    """Say which mails of a mailbox were measured on, and how many."""
    return (
        f"{column.email}: {column.mails} mails that its adapter never saw ({column.old} of the frozen "
        f"held-out set, {column.new} that arrived since its training); {column.usable} usable mails in all."
    )


def _cells(matrix: CrossMatrix, row: MatrixRow) -> list[str]:
    return [
        "–" if loss is None else f"**{loss:.3f}**" if loss == matrix.lowest(number) else f"{loss:.3f}"
        for number, loss in enumerate(row.losses)
    ]
