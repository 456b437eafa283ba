"""Preparation of data sets into the parquet files that verl reads."""
