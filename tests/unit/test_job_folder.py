"""One job's files, on a local disk and in storage that is no disk."""

from __future__ import annotations

import json
import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from tasks.job_folder import ADAPTER, CANCEL, CHECKPOINT, DATASET, HELD_OUT, METRICS, JobFolder
from training.errors import StorageError

JOB = "cmgl819t-0001"
ROOT = os.geteuid() == 0


@pytest.fixture
def local(tmp_path: Path) -> JobFolder:
    return JobFolder(str(tmp_path / "storage"), JOB)


@pytest.fixture(params=["memory://", "memory://bucket", "memory://bucket/"])
def remote(request: pytest.FixtureRequest) -> Iterator[JobFolder]:
    folder = JobFolder(request.param, f"job-{uuid.uuid4().hex}")
    yield folder
    folder.remove_all()


@pytest.fixture(params=["local", "remote"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[JobFolder]:
    url = str(tmp_path / "storage") if request.param == "local" else "memory://"
    folder = JobFolder(url, f"job-{uuid.uuid4().hex}")
    yield folder
    folder.remove_all()


# ---- any storage -----------------------------------------------------------------------------------


def test_text_and_json_come_back_as_they_were_written(folder: JobFolder) -> None:
    folder.write_text(DATASET, 'Zoë \u2028 "x"\r\n')
    folder.write_json(METRICS, {"name": "Zoë", "loss": 2.5})
    assert folder.read_text(DATASET) == 'Zoë \u2028 "x"\r\n'
    assert folder.read_json(METRICS) == {"name": "Zoë", "loss": 2.5}
    assert folder.size_of(DATASET) == len('Zoë \u2028 "x"\r\n'.encode())


def test_a_later_write_replaces_the_earlier_one(folder: JobFolder) -> None:
    folder.write_text(METRICS, "a longer text than the next")
    folder.write_text(METRICS, "short")
    assert folder.read_text(METRICS) == "short"


def test_a_missing_file_is_named_with_the_next_step(folder: JobFolder) -> None:
    folder.create()
    for ask in (folder.read_text, folder.read_json, folder.size_of):
        with pytest.raises(StorageError, match=rf"dataset\.jsonl of job {folder.job_id}.*retry"):
            ask(DATASET)


@pytest.mark.parametrize("text", ["{", "[1]", "null"])
def test_json_that_is_no_object_is_refused_without_its_text(folder: JobFolder, text: str) -> None:
    folder.write_text(METRICS, text)
    with pytest.raises(StorageError, match=r"metrics\.json") as refusal:
        folder.read_json(METRICS)
    assert refusal.value.code == "STORAGE"


def test_bytes_that_are_no_text_are_refused(folder: JobFolder) -> None:
    folder.create()
    folder.fs.pipe_file(f"{folder.path}/{DATASET}", b"\xff\xfe")
    with pytest.raises(StorageError, match="UnicodeDecodeError"):
        folder.read_text(DATASET)


def test_removing_takes_files_and_folders_and_forgives_what_is_absent(folder: JobFolder) -> None:
    folder.write_text(DATASET, "x")
    folder.write_text(METRICS, "x")
    folder.fs.makedirs(f"{folder.path}/{CHECKPOINT}", exist_ok=True)
    folder.fs.pipe_file(f"{folder.path}/{CHECKPOINT}/state.pt", b"x")
    folder.remove(DATASET, CHECKPOINT, "never.there")
    assert [folder.exists(name) for name in (DATASET, CHECKPOINT, METRICS)] == [False, False, True]
    folder.remove_all()
    assert not folder.exists(METRICS)
    folder.remove_all()


def test_two_jobs_do_not_see_each_other(folder: JobFolder) -> None:
    other = JobFolder(folder.storage_url, f"{folder.job_id}-2")
    other.write_text(CANCEL, "")
    assert not folder.exists(CANCEL)
    folder.remove_all()
    assert other.exists(CANCEL)
    other.remove_all()


def test_the_url_leads_another_process_to_the_same_file(folder: JobFolder) -> None:
    folder.write_text(METRICS, "{}")
    fs, path = fsspec.core.url_to_fs(f"{folder.url}/{METRICS}")
    assert fs.cat_file(path) == b"{}"


@pytest.mark.parametrize(
    "job_id",
    [
        "",
        ".",
        "..",
        "../other",
        "a/b",
        "a\\b",
        "/etc",
        "a b",
        "a\n",
        "a\x00",
        "~",
        "a.b",
        "job*",
        "ｊｏｂ",
        "é",
        "a:b",
    ],
)
def test_an_id_that_could_lead_elsewhere_makes_no_folder(tmp_path: Path, job_id: str) -> None:
    with pytest.raises(StorageError, match="is not a job id"):
        JobFolder(str(tmp_path), job_id)
    assert list(tmp_path.iterdir()) == []


def test_storage_that_does_not_exist_is_a_storage_error() -> None:
    with pytest.raises(StorageError, match="OWNVOICE_STORAGE_URL"):
        JobFolder("marsupilami://x", JOB)


def test_listings_are_never_remembered() -> None:
    # An object store's remembered listing would hide the cancel marker that the other side writes.
    assert JobFolder("memory://x", JOB).fs.storage_options["use_listings_cache"] is False


# ---- local disk ------------------------------------------------------------------------------------


def test_a_local_folder_and_its_files_are_the_owners_alone(local: JobFolder) -> None:
    previous = os.umask(0)
    try:
        local.write_text(DATASET, "x")
    finally:
        os.umask(previous)
    assert Path(local.path).stat().st_mode & 0o777 == 0o700
    assert (Path(local.path) / DATASET).stat().st_mode & 0o777 == 0o600


def test_an_open_folder_is_closed_again(local: JobFolder) -> None:
    Path(local.path).mkdir(parents=True, mode=0o755)
    local.create()
    assert Path(local.path).stat().st_mode & 0o777 == 0o700


def test_a_write_that_fails_leaves_the_old_file_and_no_half(
    local: JobFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    local.write_text(DATASET, "old")

    def disk_full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(StorageError, match=r"dataset\.jsonl.*disk space"):
        local.write_text(DATASET, "new")
    assert local.read_text(DATASET) == "old"
    assert [path.name for path in Path(local.path).iterdir()] == [DATASET]


def test_a_reader_never_sees_half_a_file(local: JobFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    local.write_text(METRICS, json.dumps({"loss": 1}))
    seen = []

    def read_meanwhile(handle: int) -> None:
        seen.append(local.read_json(METRICS))

    monkeypatch.setattr(os, "fsync", read_meanwhile)
    local.write_text(METRICS, json.dumps({"loss": 2}))
    assert seen == [{"loss": 1}]
    assert local.read_json(METRICS) == {"loss": 2}


def test_a_local_workspace_is_the_folder_itself(local: JobFolder) -> None:
    local.write_text(DATASET, "x")
    with local.workspace() as workspace:
        assert (workspace / DATASET).read_text() == "x"
        (workspace / METRICS).write_text("{}")
        local.push(workspace, METRICS)
    assert local.read_json(METRICS) == {}


@pytest.mark.skipif(ROOT, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_a_storage_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="PermissionError"):
        JobFolder(str(tmp_path), JOB).create()


def test_a_file_in_the_place_of_the_storage_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "storage").write_text("")
    with pytest.raises(StorageError, match="the job folder"):
        JobFolder(str(tmp_path / "storage"), JOB).create()


# ---- other storage ---------------------------------------------------------------------------------


def test_a_workspace_brings_files_and_folders_and_takes_back_what_is_pushed(remote: JobFolder) -> None:
    remote.write_text(DATASET, "x")
    with remote.workspace() as workspace:
        assert (workspace / DATASET).read_text() == "x"
        (workspace / ADAPTER / "deep").mkdir(parents=True)
        (workspace / ADAPTER / "adapter_config.json").write_text("{}")
        (workspace / ADAPTER / "deep" / "weights").write_bytes(b"\x00\x01")
        (workspace / METRICS).write_text('{"loss": 1}')
        (workspace / "not pushed").write_text("x")
        remote.push(workspace, ADAPTER, METRICS, "never.there")
    assert not workspace.exists()
    assert remote.exists(ADAPTER)
    assert remote.read_json(METRICS) == {"loss": 1}
    assert remote.read_text(f"{ADAPTER}/adapter_config.json") == "{}"
    assert remote.size_of(f"{ADAPTER}/deep/weights") == 2
    assert not remote.exists("not pushed")

    with remote.workspace() as again:
        assert (again / ADAPTER / "deep" / "weights").read_bytes() == b"\x00\x01"
        assert (again / DATASET).read_text() == "x"


def test_a_workspace_leaves_behind_what_it_need_not_hold(remote: JobFolder) -> None:
    remote.write_text(DATASET, "x")
    remote.write_text(HELD_OUT, "y")
    with remote.workspace(without=(HELD_OUT,)) as workspace:
        assert [file.name for file in workspace.iterdir()] == [DATASET]
    assert remote.exists(HELD_OUT)


def test_a_workspace_of_a_job_without_files_is_empty(remote: JobFolder) -> None:
    with remote.workspace() as workspace:
        assert list(workspace.iterdir()) == []


def test_a_scratch_copy_is_the_owners_alone_and_gone_after_an_error(remote: JobFolder) -> None:
    remote.write_text(DATASET, "x")
    with pytest.raises(KeyError), remote.workspace() as workspace:
        assert workspace.stat().st_mode & 0o777 == 0o700
        raise KeyError
    assert not workspace.exists()


def test_a_killed_process_scratch_copy_is_deleted_by_the_next(
    remote: JobFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    stale = tmp_path / f"ownvoice-{remote.job_id}-killed"
    stale.mkdir()
    (stale / DATASET).write_text("mail")
    with remote.workspace() as workspace:
        assert workspace.parent == tmp_path and not stale.exists()
    assert not list(tmp_path.iterdir())
