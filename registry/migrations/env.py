"""Alembic's entry point: migrate on the connection and inside the transaction of the caller."""

from alembic import context

from codi_hub.registry import models

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=models.metadata,
    render_as_batch=True,  # SQLite cannot alter a column in place
)
with context.begin_transaction():
    context.run_migrations()
