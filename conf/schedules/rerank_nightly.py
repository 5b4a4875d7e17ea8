"""An Airflow DAG: rerank last night's candidates, one published table a date.

Copy it into the DAGs folder and set the paths. The provider is apache-airflow-providers-apache-spark; the connection
`spark_default` names the cluster. Tried with Airflow 3.3.2 and provider 6.3.4 as far as the command that a rendered
task runs. A retry is the same command again: what was scored before the failure is in the store, so it goes on where
it stopped, and a task that is cleared by hand scores nothing twice. `max_active_runs` may be more than one: runs share
a store, and each date has its own rejects and report.

On YARN in cluster mode the driver does not run on Airflow's machine: the settings travel with it (`files`) and are
found in its own folder, and whatever is wrong ends spark-submit with 1; the report and the driver's log say what.
"""

from __future__ import annotations

import datetime

from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator
from airflow.sdk import DAG

CODE = "/opt/rerank_udf"  # a checkout: jobs/ and conf/
WHEEL = "/opt/rerank_udf/dist/rerank_udf.zip"  # the wheel, copied to a name that --py-files takes

with DAG(
    dag_id="rerank_nightly",
    schedule="30 2 * * *",
    start_date=datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 3, "retry_delay": datetime.timedelta(minutes=10)},
    tags=["reranking"],
):
    SparkSubmitOperator(
        task_id="rerank",
        conn_id="spark_default",
        application=f"{CODE}/jobs/rerank.py",
        py_files=WHEEL,
        properties_file=f"{CODE}/conf/spark/yarn.conf",
        files=f"{CODE}/conf/rerank.yaml,{CODE}/conf/spark/gpu_discovery.sh",
        application_args=[
            "--config",
            "rerank.yaml",
            "--set",
            "output.reranked.run_date={{ ds }}",
            "--set",
            "output.rejects.path=out/rejects/{{ ds }}",
            "--set",
            "run.report=out/report/{{ ds }}",
            "--set",
            "input.candidates.where=dt = '{{ ds }}'",
        ],
    )
