"""Find out who can have a voice trained, and whose voice has 100 new mails to learn from.

Runs daily, and with `ownvoice scan`. Needs the database. Leaves notices to the app (`voice.eligible`),
waiting jobs, one event `ownvoice.job.created` when there are any, and the artifact `eligibility-scan`.
"""

from __future__ import annotations

from typing import Any

from prefect import flow

from tasks.retraining import announce_jobs, scan_accounts, show_scan


@flow(name="eligibility-scan")
def eligibility_scan(config: str | None = None) -> dict[str, Any]:
    """Tell people whose voice can be trained, and retrain after 100 new mails.

    Args:
        config: Training preset of the new jobs, in configs/train/, without .yaml.
    """
    report = scan_accounts(config)
    announce_jobs(report)
    show_scan(report)
    return report.to_json_dict()


if __name__ == "__main__":
    eligibility_scan()
