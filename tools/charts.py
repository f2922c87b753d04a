"""Print the address of the charts that compare the runs of each experiment in mlruns/; called by `make ui`."""

import sqlite3
import sys

PAGE = "http://127.0.0.1:{}/#/experiments/{}/runs?workflowType=machine_learning&compareRunsMode=CHART"
EXPERIMENTS = "SELECT experiment_id, name FROM experiments WHERE lifecycle_stage = 'active' AND experiment_id > 0"

if __name__ == "__main__":
    print("Compare the runs of an experiment in charts:")
    with sqlite3.connect("mlruns/mlflow.db") as store:
        for number, name in store.execute(EXPERIMENTS):
            print(f"  {name}: {PAGE.format(sys.argv[1], number)}")
