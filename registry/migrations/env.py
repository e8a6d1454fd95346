"""Alembic's entry: migrates on the connection it is given, inside the transaction its caller has begun."""

from alembic import context

from codi_hub.registry import models

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=models.metadata,
    render_as_batch=True,  # SQLite cannot alter a column in place
)
with context.begin_transaction():
    context.run_migrations()
