"""Alembic migrations of the schema, one numbered file each."""
