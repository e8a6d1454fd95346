"""Add how a base is loaded, and its card: whether it is distilled, its steps, shift and guidance."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("base", sa.Column("options", sa.JSON(), nullable=True))
    op.add_column("base", sa.Column("card", sa.JSON(), nullable=True))
