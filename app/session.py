"""What every command needs at hand: settings, the database, the orchestrator, a serving engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property

from app import local
from app.orchestrator import Orchestrator, orchestrator_for
from serving.base import Serving
from serving.engines import open_serving
from store.database import Database, migrate, open_database, pending_migrations
from training.base_models import find_base_model
from training.errors import ConfigError, OrchestratorUnavailable
from training.settings import Settings, load_settings


class Session:
    """One command's tools, each opened when first asked for."""

    @cached_property
    def settings(self) -> Settings:
        return load_settings()

    @cached_property
    def db(self) -> Database:
        """The database. The embedded one is started and migrated, another's schema is only checked."""
        url = local.database_url(self.settings)
        db = open_database(url, sent_column=self.settings.sent_column)
        if pending := pending_migrations(db):
            if self.settings.database_url is not None:
                raise ConfigError(
                    f"The database lacks {len(pending)} migrations ({pending[0]} …). "
                    "Run `ownvoice db upgrade`."
                )
            migrate(db)
        return db

    @cached_property
    def orchestrator(self) -> Orchestrator:
        """The Prefect server, seen answering. Raises OrchestratorUnavailable."""
        url = local.prefect_api_url(self.settings)
        orchestrator = orchestrator_for(self.settings, url)
        if not orchestrator.ready():
            raise OrchestratorUnavailable(
                f"The Prefect server at {url} does not answer. "
                "Start the local stack with `ownvoice up`, or set PREFECT_API_URL."
            )
        return orchestrator

    @contextmanager
    def serving(self, base_model: str) -> Iterator[Serving]:
        """Open the configured serving engine for one base model, and close it again."""
        engine = open_serving(**self.settings.serving_options(find_base_model(base_model)))
        try:
            yield engine
        finally:
            engine.close()
