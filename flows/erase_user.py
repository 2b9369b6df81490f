"""Erase a person: their adapters, job folders and rows, with a receipt of each thing.

Needs the database, the storage and every serving engine that is configured. Leaves the receipt in storage
(`receipts/`) and as the artifact `erase-<user id>`. The rows go last, because everything else is found
through them: after a failure or a crash the same call again finishes, and after a success it finds nothing.
"""

from __future__ import annotations

import sys
from typing import Any

from prefect import flow

from tasks.erase import (
    begin_erasure,
    finish_receipt,
    remove_adapters,
    remove_instructions,
    remove_job_folders,
    remove_prefect_records,
    remove_reports,
    remove_rows,
    stop_jobs,
)


@flow(name="erase-user", flow_run_name="erase-{user_id}")
def erase_user(user_id: str, keep_mail: bool = False) -> dict[str, Any]:
    """Erase a person: their adapters, job folders and rows, with a receipt of each thing.

    Args:
        user_id: The person's id (not the address: Prefect keeps parameters).
        keep_mail: Keep the person and their mail; only the voice goes.
    """
    receipt = begin_erasure(user_id, keep_mail)
    stop_jobs(user_id)
    remove_adapters(user_id, receipt)
    remove_job_folders(user_id, receipt)
    remove_instructions(user_id, receipt)
    remove_reports(user_id, receipt)
    remove_prefect_records(user_id, receipt)
    remove_rows(user_id, receipt, keep_mail)
    return finish_receipt(receipt).to_json_dict()


if __name__ == "__main__":
    erase_user(*sys.argv[1:2])
