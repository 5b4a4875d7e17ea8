"""spark-submit jobs/evaluate.py …: the same as `rerank-udf evaluate …`."""

import sys

from rerank_udf.cli import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
