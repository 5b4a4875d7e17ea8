"""spark-submit jobs/convert.py …: the same as `rerank-udf convert …`."""

import sys

from rerank_udf.cli import main

if __name__ == "__main__":
    main(["convert", *sys.argv[1:]])
