"""spark-submit jobs/doctor.py …: the same as `rerank-udf doctor …`."""

import sys

from rerank_udf.cli import main

if __name__ == "__main__":
    main(["doctor", *sys.argv[1:]])
