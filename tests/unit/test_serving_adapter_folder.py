"""The folder of published adapters: all or nothing, one meaning per name, nothing left of killed writers."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from serving.adapter_folder import AdapterFolder, PublishedAdapter
from training.errors import AdapterRefused, ServingError

NAME = "emailai-anna:v1"


def publish(folder: AdapterFolder, source: Path, name: str = NAME) -> PublishedAdapter:
    with folder.stage(source) as (copy, digest):
        manifest = PublishedAdapter(name=name, digest=digest, base_digest="sha256:base")
        folder.add(copy, manifest)
    return manifest


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.gguf"
    path.write_bytes(b"weights")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> AdapterFolder:
    return AdapterFolder(tmp_path / "published")


def test_published_adapter_is_read_back_and_removed(folder: AdapterFolder, source: Path) -> None:
    manifest = publish(folder, source)
    assert folder.read(NAME) == manifest
    assert folder.all() == [manifest]
    assert folder.file(NAME).read_bytes() == b"weights"
    assert folder.remove(NAME) is True
    assert folder.remove(NAME) is False
    assert sorted(path.name for path in folder.path.iterdir()) == [".lock"]


def test_name_taken_by_another_writer_meanwhile_is_not_re_pointed(
    folder: AdapterFolder, source: Path
) -> None:
    with folder.stage(source) as (copy, digest):
        other = source.with_name("other.gguf")
        other.write_bytes(b"other weights")
        first = publish(folder, other)
        with pytest.raises(AdapterRefused, match="never re-pointed"):
            folder.add(copy, PublishedAdapter(name=NAME, digest=digest, base_digest="sha256:base"))
    assert folder.read(NAME) == first
    assert folder.file(NAME).read_bytes() == b"other weights"


def test_what_is_staged_does_not_change_with_its_source(folder: AdapterFolder, source: Path) -> None:
    with folder.stage(source) as (copy, _):
        source.write_bytes(b"something else")
        assert copy.read_bytes() == b"weights"


def test_failure_while_staged_leaves_nothing(folder: AdapterFolder, source: Path) -> None:
    with pytest.raises(RuntimeError), folder.stage(source):
        raise RuntimeError
    assert not list(folder.path.iterdir())


def test_files_of_a_killed_writer_are_not_read_and_swept_later(folder: AdapterFolder, source: Path) -> None:
    publish(folder, source)
    left = folder.path / ".staged-left.gguf"
    left.write_bytes(b"half")
    half_published = folder.file("emailai-boris:v1")  # killed between the two renames
    half_published.write_bytes(b"weights")
    assert [manifest.name for manifest in folder.all()] == [NAME]
    assert folder.read("emailai-boris:v1") is None
    publish(folder, source, "emailai-boris:v1")
    assert left.exists()  # may be another process at work
    os.utime(left, (time.time() - 7200,) * 2)
    publish(folder, source, "emailai-carol:v1")
    assert not left.exists()


def test_damaged_manifest_is_said_and_can_be_removed(folder: AdapterFolder, source: Path) -> None:
    publish(folder, source)
    (folder.path / f"{NAME}.json").write_text("{")
    with pytest.raises(ServingError, match="damaged"):
        folder.read(NAME)
    assert folder.remove(NAME) is True


def test_folder_that_does_not_exist_is_empty(folder: AdapterFolder) -> None:
    assert folder.all() == []
    assert folder.read(NAME) is None
