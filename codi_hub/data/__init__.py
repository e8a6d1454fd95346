"""Training and test data: synthetic images, folders, parquet files and hub datasets, as sequences of examples."""
