#!/bin/sh
# Runs once, when PostgreSQL's data folder is made. A role and a database of its own for the Prefect server:
# neither role can open the other's database, so who holds Prefect's password cannot read mail.
set -eu
psql --set=ON_ERROR_STOP=1 --set=password="$PREFECT_DB_PASSWORD" --username="$POSTGRES_USER" --dbname="$POSTGRES_DB" <<'SQL'
CREATE ROLE prefect LOGIN PASSWORD :'password';
CREATE DATABASE prefect OWNER prefect;
REVOKE CONNECT ON DATABASE ownvoice FROM PUBLIC;
REVOKE CONNECT ON DATABASE prefect FROM PUBLIC;
SQL
