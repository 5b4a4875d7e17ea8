"""spark-submit jobs/store.py …: the same as `rerank-udf store …`."""

import sys

from rerank_udf.cli import main

if __name__ == "__main__":
    main(["store", *sys.argv[1:]])
