"""Training and test data: synthetic images, folders, tar and parquet files, hub datasets, as sequences of examples."""
