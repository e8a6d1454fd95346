"""Files `NNNN_name.py` of revision NNNN: `database.revisions` reads the order from the names, without Alembic."""
