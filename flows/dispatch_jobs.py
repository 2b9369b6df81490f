"""Start the jobs that wait, find those whose flow run was lost, and tell the app what has not reached it.

Runs every minute, and at once on the event `ownvoice.job.created`. Needs the database and the Prefect
server. Leaves flow runs for waiting rows, no row that nobody works on, and no webhook that could be sent.
"""

from __future__ import annotations

from prefect import flow

from tasks.dispatch import recover_lost_jobs, start_waiting_jobs
from tasks.webhooks import deliver_webhooks


@flow(name="dispatch-jobs")
def dispatch_jobs(cohort_size: int | None = None, linger_s: float = 0) -> dict[str, int]:
    """Start the jobs that wait, find those whose flow run was lost, and deliver webhooks.

    Args:
        cohort_size: Most jobs that share one loaded base model; OWNVOICE_COHORT_SIZE unless given.
        linger_s: Seconds for which to keep looking, so that a burst of new jobs needs one run of this flow.
    """
    recovered = recover_lost_jobs()
    started = start_waiting_jobs(cohort_size, linger_s)
    return {**recovered, **started, "webhooks": deliver_webhooks().delivered}


if __name__ == "__main__":
    dispatch_jobs()
