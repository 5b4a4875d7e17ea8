"""spark-submit jobs/explain.py …: the same as `rerank-udf explain …`."""

import sys

from rerank_udf.cli import main

if __name__ == "__main__":
    main(["explain", *sys.argv[1:]])
