"""Add to a run the plan that it shares with the runs of other shards, and its shard."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.add_column("run", sa.Column("plan", sa.String(64), nullable=True))
    op.add_column("run", sa.Column("shard", sa.String(32), nullable=True))
    op.create_index(op.f("ix_run_plan"), "run", ["plan"], unique=False)
