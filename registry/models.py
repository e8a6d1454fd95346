"""The tables. A change here needs a migration in `migrations/versions`; a test compares the two.

They are SQLAlchemy Core tables, not mapped classes: importing the ORM would add a quarter to the start-up time of
every command. The public methods of this package return the plain records of `rows`.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

# Status of an adapter.
READY = "ready"
REPLACED = "replaced"  # a bundled one that is no longer in the bundle
REMOVED = "removed"  # by the user; the row stays, so that its number is not used again

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# Settings of the whole registry: the base in use, and the hash of the bundled manifest that was registered.
setting = Table(
    "setting",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", Text, nullable=False),
)

base = Table(
    "base",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(64), nullable=False, unique=True),
    Column("source", Text, nullable=False),  # absolute folder or hub id; of a bundled base relative to the bundle
    Column("family", String(128), nullable=False),
    Column("sketch", JSON(none_as_null=True)),
    Column("bundled", Boolean, nullable=False),
    Column("created", String(32), nullable=False),
    Column("options", JSON(none_as_null=True)),  # of `BaseOptions`, how it is loaded; null: as its source alone says
    Column("card", JSON(none_as_null=True)),  # of `BaseOptions`, how it is sampled; null: nothing is known
)

task = Table(
    "task",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("like", String(64), nullable=False),
    Column("options", JSON, nullable=False),
    Column("created", String(32), nullable=False),
)

# The task is a name, not a foreign key: built-in tasks have no row, and a removed task keeps its adapters.
adapter = Table(
    "adapter",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("task", String(64), nullable=False),
    Column("base_id", ForeignKey("base.id"), nullable=False),
    Column("version", Integer, nullable=False),
    Column("kind", String(32), nullable=False),
    Column("steps", Integer, nullable=False),
    Column("parameters", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("status", String(16), nullable=False),
    Column("folder", Text),  # of a bundled adapter, relative to the bundle; null: its files are blobs
    Column("metrics", JSON, nullable=False),
    Column("score", Float),
    Column("parent", String(160)),
    Column("created", String(32), nullable=False),
    Column("method", String(60)),  # null: not recorded
    UniqueConstraint("task", "base_id", "version"),
    # In the order of the lists, status included, so that a far page is found in the index alone.
    Index(None, "status", "task", "base_id", "version"),
    Index(None, "status", "base_id", "task", "version"),
)

adapter_file = Table(
    "adapter_file",
    metadata,
    Column("adapter_id", ForeignKey("adapter.id", ondelete="CASCADE"), primary_key=True),
    Column("name", String(255), primary_key=True),
    Column("sha256", String(64), nullable=False, index=True),
    Column("bytes", BigInteger, nullable=False),
)

tag = Table(
    "tag",
    metadata,
    Column("task", String(64), primary_key=True),
    Column("base_id", Integer, primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("version", Integer, nullable=False),
    ForeignKeyConstraint(
        ["task", "base_id", "version"], ["adapter.task", "adapter.base_id", "adapter.version"], ondelete="CASCADE"
    ),
    Index(None, "task", "base_id", "version"),
)

# Size, time and inode of a file when its hash was last checked; while they are the same it is not read again.
verified = Table(
    "verified",
    metadata,
    Column("path", Text, primary_key=True),
    Column("sha256", String(64), nullable=False),
    Column("inode", String(20), nullable=False),  # unsigned 64 bits on some file systems, more than SQL integers hold
    Column("bytes", BigInteger, nullable=False),
    Column("mtime_ns", BigInteger, nullable=False),
)

run = Table(
    "run",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("task", String(64), nullable=False),
    Column("adapter", String(160), nullable=False),
    Column("options", JSON, nullable=False),
    Column("status", String(16), nullable=False),
    Column("started", String(32), nullable=False),
    Column("finished", String(32)),
    Column("plan", String(64), index=True),  # equal for the runs of all shards; null: the run has no shards
    Column("shard", String(32)),  # as 1/8; null: the run made all items
)

run_item = Table(
    "run_item",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("run_id", ForeignKey("run.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("input", Text, nullable=False),
    Column("output", Text),
    Column("input_hash", String(64)),
    Column("status", String(16), nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("error", Text),
    Column("seconds", Float, nullable=False),
    Column("prompt", Text),
    Column("output_hash", String(64), index=True),  # null: written before hashes were logged
    Column("output_bytes", BigInteger),
    Column("output_mtime_ns", BigInteger),
    Column("input_stamp", BigInteger),
    Index(None, "output", postgresql_using="hash"),  # its other indexes refuse a path of more than 2.7 kB
)
