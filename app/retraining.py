"""`ownvoice scan` and `ownvoice retrain-due`: who is due for training."""

from __future__ import annotations

import time

from app.flow_runs import run_flow
from app.orchestrator import Orchestrator
from app.session import Session
from training.errors import OrchestratorUnavailable, OwnvoiceError
from training.schemas import RetrainMode, RetrainReport, ScanReport

ROUND = "monthly-retrain/daily-due"
TOTALS = "monthly-retrain-totals"
"""The table artifact in which a round leaves its totals (tasks/retraining.py)."""
POLL_S = 2.0
SERVER_GONE_S = 120.0
"""How long the Prefect server may be away while a round is followed."""


def scan_now(session: Session) -> ScanReport:
    """Run the eligibility scan in this process, with the stack's Prefect server.

    Raises OrchestratorUnavailable, StoreUnavailable, ConfigError.
    """
    _ = session.db  # the embedded one is started and migrated
    return ScanReport.model_validate(run_flow(session, "flows.eligibility_scan:eligibility_scan"))


def start_round(session: Session, mode: RetrainMode) -> str:
    """Start the monthly round on the CPU pool and return its flow run's id.

    Raises OrchestratorUnavailable, ConfigError when the deployment is not registered.
    """
    _ = session.db
    return session.orchestrator.start_run(ROUND, {"mode": mode.value})


def follow_round(orchestrator: Orchestrator, run_id: str) -> RetrainReport:
    """Wait until a round has ended and return its totals.

    Raises OwnvoiceError when it ended without any: its jobs go on by themselves. Raises
    OrchestratorUnavailable when the Prefect server stays away.
    """
    heard = time.monotonic()
    while True:
        try:
            state = orchestrator.run_state(run_id)
            totals = orchestrator.table(run_id, TOTALS) if state.is_final else []
            heard = time.monotonic()
        except OrchestratorUnavailable:
            if time.monotonic() - heard > SERVER_GONE_S:
                raise
        else:
            if totals:
                return RetrainReport.model_validate(totals[0])
            if state.is_final:
                said = f": {state.message.rstrip('.')}" if state.message else ""
                raise OwnvoiceError(
                    f"The round ended as {state.name}{said}. Jobs that it had started go on by themselves "
                    f"(`ownvoice jobs`). See {orchestrator.ui_url(run_id)}."
                )
        time.sleep(POLL_S)
