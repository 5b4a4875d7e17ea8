"""Parts of bench_spark.py: synthetic tables, CPU accounting, scorers, one measured job, and the plain peer job."""
