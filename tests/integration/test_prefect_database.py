"""The script that gives the Prefect server a database of its own, run on a real PostgreSQL."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from store import embedded
from training.settings import PROJECT_ROOT

SCRIPT = PROJECT_ROOT / "deployments" / "docker" / "create-prefect-database.sh"
PASSWORD = "it's-p@lombia"


@pytest.fixture
def server() -> Iterator[str]:
    """URL of a server of its own: the script makes roles, which all databases of a server share."""
    with tempfile.TemporaryDirectory(prefix="ov-") as folder:
        try:
            yield embedded.start(Path(folder))
        finally:
            embedded.stop(Path(folder))


def test_script_keeps_each_role_out_of_the_others_database(server: str) -> None:
    address = conninfo_to_dict(server)
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute("CREATE ROLE somebody LOGIN")
    environment = {
        **os.environ,
        "PATH": f"{embedded._programs()}{os.pathsep}{os.environ['PATH']}",
        "PGHOST": str(address["host"]),
        "PGPORT": str(address["port"]),
        "POSTGRES_USER": "postgres",
        "POSTGRES_DB": embedded.DATABASE,
        "PREFECT_DB_PASSWORD": PASSWORD,
    }
    subprocess.run(["sh", SCRIPT], env=environment, check=True, capture_output=True)

    def connect(user: str, database: str) -> str:
        with psycopg.connect(
            host=address["host"], port=address["port"], user=user, dbname=database
        ) as opened:
            return opened.info.dbname

    assert connect("prefect", "prefect") == "prefect"
    for user, database in (("prefect", embedded.DATABASE), ("somebody", "prefect")):
        with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
            connect(user, database)
    with psycopg.connect(server) as connection:
        kept = connection.execute("SELECT rolpassword FROM pg_authid WHERE rolname = 'prefect'").fetchone()
    assert kept is not None and kept[0].startswith("SCRAM-SHA-256$")
