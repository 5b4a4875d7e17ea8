"""spark-submit jobs/train.py …: the same as `rerank-udf train …`."""

import sys

from rerank_udf.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
