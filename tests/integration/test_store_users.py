"""People are found by any spelling of their address, and consent is a moment that can be taken back."""

from __future__ import annotations

import pytest

from store.database import Database
from store.users import (
    add_aliases,
    addresses,
    create_user,
    find_user,
    list_users,
    record_consent,
    withdraw_consent,
)
from training.errors import ConfigError, UnknownUser


def test_user_is_found_by_id_and_by_address_in_any_case(db: Database) -> None:
    anna = create_user(db, "Anna@Example.org")
    assert find_user(db, anna.id) == find_user(db, "anna@EXAMPLE.org") == anna
    assert list_users(db) == [anna]


def test_new_id_is_lower_case_and_given_id_is_kept(db: Database) -> None:
    made = create_user(db, "a@example.org").id
    assert made == made.lower() and len(made) == 21 and made.startswith("u")
    assert create_user(db, "b@example.org", user_id="cmgl819t70000jp2x").id == "cmgl819t70000jp2x"


def test_unknown_user_is_told_what_to_type(db: Database) -> None:
    with pytest.raises(UnknownUser, match=r"ownvoice import PATH --user nobody@example\.org"):
        find_user(db, "nobody@example.org")
    with pytest.raises(UnknownUser, match="Give the id or the mail address"):
        find_user(db, "nobody")


def test_same_address_is_not_taken_twice(db: Database) -> None:
    create_user(db, "anna@example.org")
    with pytest.raises(ConfigError, match="known already"):
        create_user(db, "ANNA@example.org")


@pytest.mark.parametrize("address", ["", "anna", "anna@", "@example.org", "a b@example.org", "a@b@"])
def test_bad_address_is_refused(db: Database, address: str) -> None:
    with pytest.raises(ConfigError, match="no mail address"):
        create_user(db, address)


def test_aliases_are_added_once_and_lower_cased_in_addresses(db: Database) -> None:
    anna = create_user(db, "anna@example.org", aliases=["A.Berg@work.example"])
    assert add_aliases(db, anna.id, ["a.berg@WORK.example", "Anna Berg", "ANNA@example.org"]) == (
        "Anna Berg",
    )
    assert addresses(db, anna.id) == {"anna@example.org", "a.berg@work.example", "anna berg"}


def test_consent_keeps_its_first_moment_until_withdrawn(db: Database) -> None:
    anna = create_user(db, "anna@example.org")
    assert anna.voice_consent_at is None
    first = record_consent(db, anna.id)
    assert record_consent(db, anna.id).voice_consent_at == first.voice_consent_at is not None
    assert withdraw_consent(db, anna.id).voice_consent_at is None
    with pytest.raises(UnknownUser):
        record_consent(db, "u-nobody")
