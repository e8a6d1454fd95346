"""`NNNN_what.py`, whose revision is NNNN: `database.revisions` reads the order off the names, without Alembic."""
