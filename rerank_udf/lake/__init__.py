"""Tables in and out of the lake: sources, published Parquet versions, tables by name."""
