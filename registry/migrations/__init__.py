"""Schema changes, one numbered step each, for Alembic."""
