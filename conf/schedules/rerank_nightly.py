"""An Airflow DAG: rerank the candidates of the day before, one published table a date.

Copy it into the DAGs folder and set the paths. The provider is apache-airflow-providers-apache-spark, 6.1 or newer.
The connection `spark_default` names the cluster (host `yarn`) and, as its extra `yarn_resourcemanager_webapp_address`,
where YARN's ResourceManager answers (http://HOST:8088). Tried with Airflow 3.3.2 and provider 6.3.4 as far as the
command that a rendered task runs, with a pretended spark-submit and a pretended ResourceManager: submitted, followed,
killed, taken up again.

On YARN in cluster mode the driver does not run on Airflow's machine: the settings travel with it (`files`) and are
found in its own folder, and whatever is wrong fails the task; the report and the driver's log say what. Two arguments
go with that, by the provider's source:

- `deploy_mode`: a connection made in Airflow's form says `client` unless told otherwise, which overrules yarn.conf.
- `yarn_track_via_rm_api`: the task asks the ResourceManager what became of the application. A task that is killed, or
  runs out of time, kills the application too, which from provider 6.2 on goes by the ResourceManager alone. From
  Airflow 3.3 on a retry after a worker's death waits for the application that still runs, instead of starting a second
  one beside it (`durable`, on by default, which cannot do without this argument).

A retry is the same command again: what was scored before the failure is in the store, so it goes on where it stopped,
and a task that is cleared by hand scores nothing twice. (By Airflow's documentation 3.3 starts nothing where the task
that is cleared had succeeded, unless `clear_on_success` is set in [state_store]; from 3.4 on it starts a new run.)
`max_active_runs` may be more than one: runs share a store, and each date has its own rejects and report.
"""

from __future__ import annotations

import datetime

from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator
from airflow.sdk import DAG

CODE = "/opt/rerank_udf"  # a checkout: jobs/ and conf/
WHEEL = "/opt/rerank_udf/dist/rerank_udf.zip"  # the wheel, copied to a name that --py-files takes

# The day before the run, whose partition is whole by now. In Airflow 3 `ds` is the day of the run itself; where
# `create_cron_data_intervals` is set in [scheduler], as in Airflow 2, it is the day before already: "{{ ds }}".
DATE = "{{ macros.ds_add(ds, -1) }}"

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
        deploy_mode="cluster",
        yarn_track_via_rm_api=True,
        application=f"{CODE}/jobs/rerank.py",
        py_files=WHEEL,
        properties_file=f"{CODE}/conf/spark/yarn.conf",
        files=f"{CODE}/conf/rerank.yaml,{CODE}/conf/spark/gpu_discovery.sh",
        application_args=[
            "--config",
            "rerank.yaml",
            "--set",
            f"output.reranked.run_date={DATE}",
            "--set",
            f"output.rejects.path=out/rejects/{DATE}",
            "--set",
            f"run.report=out/report/{DATE}",
            "--set",
            f"input.candidates.where=dt = '{DATE}'",
        ],
    )
