#!/usr/bin/env bash
# DVC 3.67.1: `dvc status`, `dvc add` and the like while queued experiments run.
# Expected: an experiment runs in a copy of the project, so the project itself stays usable, however the queue was started. In
# the same way, `dvc repro` in the project releases DVC's lock while the command of a stage runs.
# Seen: `dvc queue start` leaves the project usable. `dvc exp run --run-all` holds its lock until the whole queue is done, which
# can take days: every other command fails after three seconds with 'Unable to acquire lock'.
set -euo pipefail
folder=$(mktemp -d)
trap 'touch "$folder/go"; sleep 20; rm -rf "$folder" || true' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet dvc==3.67.1
export PATH="$folder/venv/bin:$PATH" DVC_NO_ANALYTICS=1 HOME="$folder" FOLDER="$folder"
git config --global user.email someone@example.org
git config --global user.name Someone
git config --global init.defaultBranch main
mkdir "$folder/project" && cd "$folder/project"
git init --quiet
dvc init --quiet
echo "rate: 1" > params.yaml
cat > dvc.yaml <<'YAML'
stages:
  train:
    cmd: touch "$FOLDER/began"; while [ ! -e "$FOLDER/go" ]; do sleep 1; done; echo done > model
    params: [rate]
    outs: [model]
YAML
echo image > data
git add . && git commit --quiet --message start
try() {  # while the experiment of the command is running
    rm -f "$FOLDER/began" "$FOLDER/go"
    "$@" > "$FOLDER/log" 2>&1 &
    for _ in $(seq 120); do [ -e "$FOLDER/began" ] && break; sleep 1; done
    test -e "$FOLDER/began"
    dvc status > answer 2>&1 || true
    echo "$*: dvc status $(grep -q 'Unable to acquire lock' answer && echo fails || echo works)"
    touch "$FOLDER/go"
    wait
    for _ in $(seq 120); do dvc queue status 2> /dev/null | grep -q Running || break; sleep 1; done
}
{
    dvc exp run --quiet --queue -S rate=2 > /dev/null
    try dvc queue start
    dvc exp run --quiet --queue -S rate=3 > /dev/null
    try dvc exp run --run-all
    try dvc repro
} > "$folder/seen"
cat "$folder/seen"
diff "$folder/seen" - <<'SEEN'
dvc queue start: dvc status works
dvc exp run --run-all: dvc status fails
dvc repro: dvc status works
SEEN
