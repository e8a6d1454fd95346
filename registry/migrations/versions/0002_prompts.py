"""Add the prompt of each item of a run."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("run_item", sa.Column("prompt", sa.Text(), nullable=True))
