#!/usr/bin/env bash
# MLflow 3.17.2: one process reads a run in a store and then in a copy of that store, as a script that compares a project with its
# backup does. Both clients are given the address of their own store.
# Expected: each client lists and writes the files of its own store; the copy's artifact addresses were changed to its folder.
# Seen: get_run returns the copy's artifact address, but list_artifacts and log_artifact use the folder of the first store, because
# MLflow caches the artifact location by run ID alone, for the life of the process. A file logged to the copy therefore ends up in
# the original.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet mlflow==3.17.2
cat > "$folder/stores.py" <<'PYTHON'
import shutil
import sqlite3
import sys
from pathlib import Path

import mlflow

root = Path(sys.argv[1])
one, other = root / "one", root / "other"
one.mkdir()
first = mlflow.MlflowClient(f"sqlite:///{one}/mlflow.db")
experiment = first.create_experiment("e", artifact_location=str(one / "files"))
run = first.create_run(experiment).info.run_id
(root / "a.txt").write_text("a")
first.log_artifact(run, str(root / "a.txt"))

shutil.copytree(one, other)
with sqlite3.connect(other / "mlflow.db") as tables:
    for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
        tables.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (str(one), str(other)))

second = mlflow.MlflowClient(f"sqlite:///{other}/mlflow.db")
(root / "b.txt").write_text("b")
second.log_artifact(run, str(root / "b.txt"))
print("address in the copy:", second.get_run(run).info.artifact_uri.removeprefix(f"{root}/").split("/")[0])
print("b.txt is in:", sorted(path.relative_to(root).parts[0] for path in root.rglob("b.txt") if path.parent != root))
PYTHON
"$folder/venv/bin/python" "$folder/stores.py" "$folder" 2> /dev/null > "$folder/seen"
cat "$folder/seen"
diff "$folder/seen" - <<'SEEN'
address in the copy: other
b.txt is in: ['one']
SEEN
