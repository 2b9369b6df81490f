"""The scan and the monthly round through the command line, on the real stack with its workers."""

from __future__ import annotations

from typing import Any

from psycopg import sql

from app import retraining
from app.orchestrator import Orchestrator
from store import jobs, users
from store.database import Database
from tests.e2e.stack import CommandLine, Running, wait_for


def put(db: Database, user_id: str, **columns: Any) -> None:
    with db.connection() as connection:
        for column, value in columns.items():
            query = sql.SQL('UPDATE "User" SET {} = {} WHERE "id" = %s')
            connection.execute(query.format(sql.Identifier(column), sql.SQL(value)), (user_id,))


def person_with_mail(running: Running, db: Database, email: str) -> str:
    running.import_sample(email)
    return users.find_user(db, email).id


def make_due(db: Database, user_id: str, *, trained_at: int) -> None:
    """Give the person a training date in the past, and an adapter that knew `trained_at` of the 197 mails."""
    put(
        db,
        user_id,
        loraAdapterId="'j-of-an-earlier-installation'",
        adapterNextTraining="now() - interval '1 hour'",
        sentCountTrained=str(trained_at),
    )


def test_scan_tells_a_new_person_and_prints_only_its_report(
    running: Running, db: Database, command: CommandLine
) -> None:
    person_with_mail(running, db, "told@example.org")
    answer = command("scan", "--json")
    assert answer.json.keys() == {"accounts", "users", "notices", "jobs", "seconds"}
    assert answer.json["notices"] >= 1
    assert answer.err == ""
    again = command("scan")
    assert again.out.startswith("Looked at 0 accounts with new sent mail, of 0 people: 0 notices, 0 jobs")


def test_hundred_new_mails_are_trained_on_without_anybodys_click(
    running: Running, db: Database, command: CommandLine
) -> None:
    user_id = person_with_mail(running, db, "grown@example.org")
    put(db, user_id, loraAdapterId="'j-of-an-earlier-installation'", sentCountTrained="97")
    assert command("scan", "--json").json["jobs"] == 1
    # The event starts a dispatcher; a minute later the schedule would.
    job = wait_for(
        lambda: next((j for j in jobs.list_jobs(db, user_id) if j.flow_run_id is not None), None),
        "the dispatcher",
    )
    assert job.trigger == "mail_count"
    command("cancel", job.id)


def test_commands_say_how_to_start_the_stack_when_there_is_none(
    command: CommandLine,
) -> None:
    nowhere = command.with_variables(PREFECT_API_URL="http://127.0.0.1:9/api")
    for name in ("scan", "retrain-due"):
        error = nowhere(name, "--json", code=1).error
        assert error["code"] == "ORCHESTRATOR_UNAVAILABLE" and "ownvoice up" in error["message"]


def test_round_on_command_skips_whoever_wrote_too_little(
    running: Running, db: Database, command: CommandLine
) -> None:
    lazy = person_with_mail(running, db, "lazy@example.org")
    make_due(db, lazy, trained_at=180)
    answer = command("retrain-due", "--follow", "--json", timeout_s=180)
    assert (answer.json["due"], answer.json["skipped"], answer.json["cohorts"]) == (1, 1, 0)
    assert answer.err == ""
    summary = running.prefect("artifacts/monthly-retrain/latest")
    assert f"| {lazy} | skipped | 17 new mails, 50 needed; next " in summary["data"]
    nobody = command("retrain-due", "--follow", timeout_s=180)
    assert nobody.out.strip() == "Nobody was due."


def test_round_trains_who_is_due_in_one_cohort_on_the_gpu_pool(running: Running, db: Database) -> None:
    people = [person_with_mail(running, db, f"due{n}@example.org") for n in range(2)]
    for user_id in people:
        make_due(db, user_id, trained_at=97)
    with Orchestrator(running.written["prefectApiUrl"]) as orchestrator:
        # The command itself takes the installation's preset, which trains for minutes.
        run_id = orchestrator.start_run(retraining.ROUND, {"config": "cpu-smoke"})
        report = retraining.follow_round(orchestrator, run_id)
    assert (report.due, report.cohorts, report.failed, report.running) == (2, 1, 0, 0)
    assert report.trained + report.kept + report.not_proven == 2 and report.minutes > 0
    made = [job for user_id in people for job in jobs.list_jobs(db, user_id)]
    assert [(job.status, job.trigger) for job in made] == [("COMPLETED", "schedule")] * 2
    (training,) = {run["id"]: run for job in made for run in running.training_runs(job.id)}.values()
    assert training["work_queue_name"] == "bulk"
    for user_id in people:
        user = users.find_user(db, user_id)
        assert user.sent_count_trained == 197 and user.adapter_next_training is not None
