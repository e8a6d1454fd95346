"""Add the method of each adapter, read from its record, and call the kind `side` by its new name, `residual`."""

from pathlib import Path

import sqlalchemy as sa
from alembic import context, op

from codi_hub.registry.store import Store

revision = "0004"
down_revision = "0003"

_adapter = sa.table("adapter", sa.column("id"), sa.column("kind"), sa.column("method"), sa.column("folder"))
_file = sa.table("adapter_file", sa.column("adapter_id"), sa.column("name"), sa.column("sha256"))
_setting = sa.table("setting", sa.column("name"))


def upgrade() -> None:
    from codi_hub.record import recorded_method

    op.add_column("adapter", sa.Column("method", sa.String(60), nullable=True))
    connection = op.get_bind()
    connection.execute(_adapter.update().where(_adapter.c.kind == "side").values(kind="residual"))
    # The bundled adapters are registered again by the next open, from the manifest.
    connection.execute(_setting.delete().where(_setting.c.name == "bundled_manifest"))
    store = Store(Path(context.config.attributes["home"]) / "blobs")
    stored = sa.select(_adapter.c.id, _file.c.sha256).where(
        _adapter.c.id == _file.c.adapter_id, _adapter.c.folder.is_(None), _file.c.name == "adapter.json"
    )
    for adapter_id, digest in connection.execute(stored).all():
        if method := recorded_method(store.path(digest)):
            connection.execute(_adapter.update().where(_adapter.c.id == adapter_id).values(method=method))
