"""Add an index to find the run that wrote an output."""

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_index(op.f("ix_run_item_output"), "run_item", ["output"], unique=False, postgresql_using="hash")
