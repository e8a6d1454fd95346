"""Training and test data: synthetic images, folders, parquet files and hub datasets, as sequences of examples."""

from codi_hub.data.sources import Source, open_source

__all__ = ["Source", "open_source"]
