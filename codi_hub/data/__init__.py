"""Training data: pictures made on the fly, folders, parquet files and hub datasets, all as sequences of examples."""

from codi_hub.data.sources import Source, open_source

__all__ = ["Source", "open_source"]
