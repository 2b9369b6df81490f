"""PostgreSQL: users, mail, jobs and the importers that fill them; knows no Prefect, torch or serving."""
