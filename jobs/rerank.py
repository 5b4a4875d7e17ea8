"""spark-submit jobs/rerank.py …: the same as `rerank-udf rerank …`."""

import sys

from rerank_udf.cli import main

if __name__ == "__main__":
    main(["rerank", *sys.argv[1:]])
