"""Add the stamp of an input in a store, by which a resumed run knows it without reading it."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.add_column("run_item", sa.Column("input_stamp", sa.BigInteger(), nullable=True))
