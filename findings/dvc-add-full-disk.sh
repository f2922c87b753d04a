#!/usr/bin/env bash
# DVC 3.67.1: `dvc add` and `dvc repro` where the cache's disk is full, as on a shared server. A limit on the size of new files
# stands for the disk here: the two large files of a folder do not fit, the small one does.
# Expected: an exit code other than 0, and no data.dvc that names data which nothing holds.
# Seen: for a folder, both commands write data.dvc or dvc.lock and exit with 0; the only sign is 'failed to transfer' among the
# messages, which --quiet hides. A script that goes on
# commits a version that DVC cannot restore, and the next `dvc repro` deletes the stage's output and runs the stage again.
# With a single file in place of a folder, `dvc add` exits with 1.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet dvc==3.67.1
export PATH="$folder/venv/bin:$PATH" DVC_NO_ANALYTICS=1 HOME="$folder"
mkdir "$folder/project" && cd "$folder/project"
dvc init --quiet --no-scm
mkdir data
for name in a b; do head -c 3000000 /dev/urandom > data/$name; done
echo small > data/c
cat > dvc.yaml <<'YAML'
stages:
  train:
    cmd: ulimit -S -f unlimited; echo ran >> ran; mkdir model; head -c 3000000 /dev/urandom > model/weights
    outs: [model]
YAML
{
    (ulimit -S -f 1000; dvc add --quiet data 2> errors) && echo "add a folder: 0" || echo "add a folder: failed"
    echo "lines of messages: $(wc -l < errors)"
    test -f data.dvc && echo "data.dvc was written"
    (ulimit -S -f 1000; dvc repro --quiet train 2> errors) && echo "repro: 0" || echo "repro: failed"
    dvc repro --quiet train
    echo "the stage ran $(wc -l < ran) times"
    cp data/a file
    (ulimit -S -f 1000; dvc add --quiet file 2> errors) && echo "add a file: 0" || echo "add a file: failed"
} > "$folder/seen"
cat "$folder/seen"
diff "$folder/seen" - <<'SEEN'
add a folder: 0
lines of messages: 0
data.dvc was written
repro: 0
the stage ran 2 times
add a file: failed
SEEN
