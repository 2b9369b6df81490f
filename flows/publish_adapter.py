"""Make an earlier version of a person's adapter active again.

Needs the database and a serving engine; the training side is not asked. Leaves the person's model name at the
version that was proven once more, and the version that was active still published, so that going forward
again is the same call.
"""

from __future__ import annotations

import sys
from typing import Any

from prefect import flow, get_run_logger

from tasks.rollback import activate_version, choose_version, verify_version


@flow(name="publish-adapter", flow_run_name="rollback-{user_id}")
def rollback_adapter(user_id: str, version: int | None = None) -> dict[str, Any]:
    """Make an earlier version of a person's adapter active again.

    Args:
        user_id: The person's id or e-mail address.
        version: The promoted version to serve; without it the newest one older than the active one.
    """
    job = choose_version(user_id, version)
    name = verify_version(job.id)
    result = activate_version(job.id, name)
    get_run_logger().info("version %d → %d", result.old_version, result.new_version)
    return result.to_json_dict()


if __name__ == "__main__":
    rollback_adapter(*sys.argv[1:2])
