"""Add the hash, size and time of an output's file as codi wrote it."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.add_column("run_item", sa.Column("output_hash", sa.String(64), nullable=True))
    op.add_column("run_item", sa.Column("output_bytes", sa.BigInteger(), nullable=True))
    op.add_column("run_item", sa.Column("output_mtime_ns", sa.BigInteger(), nullable=True))
    op.create_index(op.f("ix_run_item_output_hash"), "run_item", ["output_hash"], unique=False)
