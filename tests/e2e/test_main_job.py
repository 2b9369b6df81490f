"""From a mailbox to a served voice: the main job as a person runs it, and all that it leaves behind."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from tests.e2e.conftest import MainJob
from tests.e2e.stack import MERRIN, CommandLine, Running, wait_for

KEYS = {
    *("id", "userId", "status", "outcome", "stage", "progress", "version", "baseModel", "modelName"),
    *("adapterPath", "adapterSize", "adapterDigest", "trainingEmails", "errorCode", "errorMessage"),
}
METRIC_KEYS = {
    *("heldOutNllBase", "heldOutNllAdapter", "heldOutEmails", "heldOutTokens"),
    *("trainTokens", "trainTokensPerSecond"),
}
STAGES = {"extract", "prepare", "train", "evaluate", "publish", "activate"}


def test_second_import_of_a_mailbox_adds_nothing(main_job: MainJob) -> None:
    first, again = main_job.imported, main_job.imported_again
    assert first["added"] == first["read"] == first["sent"] == 197
    assert (again["added"], again["alreadyPresent"]) == (0, 197)
    assert first["userId"] == again["userId"] == main_job.job["userId"]


def test_check_reports_every_sent_mail_as_kept_or_dropped_for_a_reason(main_job: MainJob) -> None:
    report = main_job.report
    assert {"sent", "usable", "dropped", "eligible", "reason", "estimate"} <= report.keys()
    assert report["eligible"] and report["sent"] == 197
    assert report["usable"] + sum(report["dropped"].values()) == 197
    assert report["usable"] >= 130
    assert report["estimate"].keys() >= {"seconds", "tokens", "cost"}
    assert report["estimate"]["seconds"] > 0 and report["estimate"]["tokens"] > 0


def test_finished_job_is_one_json_object_with_its_numbers(main_job: MainJob) -> None:
    job = main_job.job
    assert job.keys() >= KEYS
    assert (job["status"], job["outcome"], job["progress"]) == ("COMPLETED", "PROMOTED", 100)
    assert (job["stage"], job["version"], job["baseModel"]) == ("activate", 1, "smollm2-135m")
    assert job["modelName"] == f"emailai-{job['userId']}:v1"
    assert job["errorCode"] is None and job["errorMessage"] is None
    assert job["trainingEmails"] == main_job.report["train"]

    metrics = job["metrics"]
    assert metrics.keys() >= METRIC_KEYS
    assert 0 < metrics["heldOutNllAdapter"] < metrics["heldOutNllBase"] < 6
    assert metrics["heldOutEmails"] == main_job.report["heldOut"] and metrics["heldOutTokens"] > 100
    assert metrics["trainTokens"] > 1000 and metrics["trainTokensPerSecond"] > 1
    assert job["timings"].keys() == STAGES
    assert all(seconds >= 0 for seconds in job["timings"].values())
    assert job["timings"]["train"] >= metrics["trainTokens"] / metrics["trainTokensPerSecond"] - 0.1


def test_user_row_names_the_served_adapter(main_job: MainJob) -> None:
    assert main_job.user == {
        "provider": "llamacpp",
        "model": main_job.job["modelName"],
        "adapter": main_job.job["id"],
        "path": main_job.job["adapterPath"],
    }


def test_job_folder_keeps_the_adapter_and_its_numbers_and_no_mail(
    main_job: MainJob, running: Running
) -> None:
    folder = running.folder(main_job.job["id"])
    left = {path.name for path in folder.iterdir()}
    assert {"adapter", "adapter.gguf", "run.json", "metrics.json", "report.json", "samples.json"} <= left
    assert not left & {"dataset.jsonl", "held_out.jsonl", "checkpoint", "progress.json", "error.json"}
    assert folder.stat().st_mode & 0o777 == 0o700
    for name in ("run.json", "metrics.json", "report.json", "samples.json"):
        assert json.loads((folder / name).read_text())


def test_recorded_digest_and_size_are_those_of_the_adapter_file(main_job: MainJob) -> None:
    path = Path(main_job.job["adapterPath"])
    assert main_job.job["adapterDigest"] == f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    assert main_job.job["adapterSize"] == path.stat().st_size


def test_progress_only_moves_forward_through_all_stages(main_job: MainJob) -> None:
    shown = [
        float(event["data"]["progress"] if event["type"] == "status" else event["message"].removesuffix(" %"))
        for event in main_job.events
        if event["type"] in ("status", "metrics")
    ]
    assert shown == sorted(shown) and shown[0] == 0 and shown[-1] == 100
    stages = [event["data"]["stage"] for event in main_job.events if "stage" in event["data"]]
    assert stages == ["extract", "prepare", "train", "evaluate", "publish", "activate"]
    steps = [event["data"]["step"] for event in main_job.events if "step" in event["data"]]
    assert steps == sorted(steps) and steps[-1] == 6


def test_prefect_shows_both_runs_with_what_people_want_to_see(main_job: MainJob, running: Running) -> None:
    job = main_job.job
    parent = running.prefect(f"flow_runs/{job['flowRunId']}")
    assert parent["state_type"] == "COMPLETED"
    assert set(parent["tags"]) == {"ownvoice", "training", f"user:{job['userId']}"}
    (training,) = running.training_runs(job["id"])
    # The job does not wait for the run's own end.
    run = f"flow_runs/{training['id']}"
    wait_for(lambda: running.prefect(run)["state_type"] == "COMPLETED", "the training's run to end", 30)
    assert training["work_pool_name"] == "gpu" and parent["work_pool_name"] == "cpu"

    artifacts = {item["key"]: item for item in running.prefect_all("artifacts/filter") if item["key"]}
    for kind, flow_run in {
        "data-report": parent,
        "decision": parent,
        "samples": parent,
        "loss-curve": training,
        "training": training,
        "progress": parent,
        "training-progress": training,
    }.items():
        assert artifacts[f"{kind}-{job['id']}"]["flow_run_id"] == flow_run["id"]
    assert f"| {main_job.report['sent']} sent mails" in artifacts[f"data-report-{job['id']}"]["data"]
    assert "data:image/png;base64," in artifacts[f"training-{job['id']}"]["data"]
    assert artifacts[f"progress-{job['id']}"]["data"] == 100
    assert len(json.loads(artifacts[f"loss-curve-{job['id']}"]["data"])) == 6


def test_write_answers_in_the_trained_voice_beside_the_base(main_job: MainJob, command: CommandLine) -> None:
    instruction = "Write an email about: the paint is late"
    sampling = ("--seed", "5", "--max-tokens", "60")
    both = command("write", MERRIN, instruction, "--base", *sampling, "--json").json
    assert both["model"].startswith(f"emailai-{main_job.job['userId']}:v")
    assert both["text"].strip() and both["base"].strip() and both["text"] != both["base"]
    plain = command("write", MERRIN, instruction, *sampling)
    assert plain.out.strip() == both["text"].strip()


def test_everything_else_that_people_ask_answers(main_job: MainJob, command: CommandLine) -> None:
    job = main_job.job
    assert command("jobs", MERRIN, "--json").json[-1]["id"] == job["id"]
    assert job["id"] in command("jobs").out
    assert command("show", job["id"][:8], "--json").json["id"] == job["id"]
    shown = command("show", job["id"]).out
    assert "PROMOTED" in shown and job["modelName"] in shown
    assert command("status", "--json").json["running"] is True
    assert "Prefect UI: http://127.0.0.1:" in command("status").out
    findings = {finding["name"]: finding["ok"] for finding in command("doctor", "--json").json}
    assert findings.keys() >= {"python", "database", "prefect server", "serving engine", "base model"}
    assert all(findings.values())
