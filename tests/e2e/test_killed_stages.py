"""kill -9 of the flow process in every stage: the job goes on by itself and ends as if nothing had happened.

The stages that take milliseconds are held open by a trigger in the database, so that the kill hits them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from store.database import Database
from tests.e2e.stack import SMALL, TRAIN_S, Running, wait_for
from training.schemas import Stage

pytestmark = pytest.mark.slow

PERSON = "vesna@example.net"
HOLD_S = 6
HOLD = f"""
CREATE TABLE IF NOT EXISTS "HeldStage" ("stage" text PRIMARY KEY);
CREATE OR REPLACE FUNCTION hold_stage() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM "HeldStage" h WHERE h."stage" = OLD."stage") THEN
        PERFORM pg_sleep({HOLD_S});
    END IF;
    RETURN NEW;
END $$;
CREATE OR REPLACE TRIGGER "hold_stage" BEFORE UPDATE ON "FineTuningJob"
    FOR EACH ROW EXECUTE FUNCTION hold_stage();
"""


@pytest.fixture(scope="module")
def preset(running: Running, tmp_path_factory: pytest.TempPathFactory) -> Path:
    running.import_sample(PERSON)
    path = tmp_path_factory.mktemp("vesna") / "three-steps.yaml"
    path.write_text(SMALL.format(epochs=1, steps=3))
    return path


@pytest.fixture
def holding(running: Running, db: Database) -> Iterator[Database]:
    with db.connection() as connection:
        connection.execute(HOLD.encode())
    yield db
    with db.connection() as connection:
        connection.execute('DROP TRIGGER "hold_stage" ON "FineTuningJob"')
        connection.execute('DROP TABLE "HeldStage"')


@pytest.mark.parametrize("stage", Stage)
def test_job_goes_on_by_itself_when_its_process_is_killed(
    running: Running, preset: Path, holding: Database, stage: Stage
) -> None:
    with holding.connection() as connection:
        connection.execute('INSERT INTO "HeldStage" VALUES (%s)', (stage,))
    job_id = running.command("train", PERSON, "--config", preset, "--json").json["id"]
    wait_for(lambda: running.row(job_id).stage == stage or None, f"the stage {stage}", TRAIN_S)
    time.sleep(0.5)  # into the stage's own work
    running.run_process(job_id).kill()
    with holding.connection() as connection:
        connection.execute('DELETE FROM "HeldStage"')

    job = running.wait_for_job(job_id, "COMPLETED")
    queued_again = [event for event in job["events"] if event["message"].startswith("Queued again")]
    assert len(queued_again) == 1 and f"stage {stage}" in queued_again[0]["message"]
    assert (job["outcome"], job["progress"], job["attempts"]) == ("PROMOTED", 100, 2)
    if stage in (Stage.EVALUATE, Stage.PUBLISH, Stage.ACTIVATE):
        assert len(running.training_runs(job_id)) == 1, "a finished training is not repeated"
    with holding.connection() as connection:
        row = connection.execute('SELECT "aiModel" FROM "User" WHERE "id" = %s', (job["userId"],)).fetchone()
    assert row == (job["modelName"],)
    left = {path.name for path in running.folder(job_id).iterdir()}
    mail = {"dataset.jsonl", "held_out.jsonl", "outputs.json", "checkpoint"}
    assert "adapter.gguf" in left and not left & mail
