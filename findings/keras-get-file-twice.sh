#!/usr/bin/env bash
# Keras 3.15.1: two processes that call keras.utils.get_file for the same file at once, as two training jobs on a new machine do.
# Expected: each gets the file, or the second waits for the first.
# Seen: get_file downloads to the file's final name without a lock. The second process finds a file with another hash, truncates
# it and downloads again, so the first one's complete download fails the check of its hash. Which one fails depends on how far
# the first is; here it has half. The error says 'Incomplete or corrupted file detected', although the server sent every byte.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet keras==3.15.1 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat > "$folder/download.py" <<'PYTHON'
import hashlib
import http.server
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

BODY = bytes(range(256)) * 4096  # 1 MB
HASH = hashlib.sha256(BODY).hexdigest()


class Slow(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        for start in range(0, len(BODY), len(BODY) // 16):
            self.wfile.write(BODY[start : start + len(BODY) // 16])
            self.wfile.flush()
            time.sleep(0.25)

    def log_message(self, *arguments):
        pass


def fetch(url):
    import keras

    try:
        path = keras.utils.get_file("weights.bin", url, file_hash=HASH)
        print(keras.__version__, "whole" if Path(path).read_bytes() == BODY else "damaged")
    except Exception as error:
        print(keras.__version__, type(error).__name__, str(error)[:34])


if len(sys.argv) > 1:
    fetch(sys.argv[1])
else:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    command = [sys.executable, __file__, f"http://127.0.0.1:{server.server_port}/weights.bin"]
    file = Path(os.environ["KERAS_HOME"], "datasets", "weights.bin")
    first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    while first.poll() is None and (not file.exists() or file.stat().st_size < len(BODY) // 2):
        time.sleep(0.01)
    second = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    print("first:", first.communicate()[0].strip().splitlines()[-1])
    print("second:", second.stdout.strip().splitlines()[-1])
PYTHON
KERAS_BACKEND=jax KERAS_HOME=$folder/keras "$folder/venv/bin/python" "$folder/download.py" | tee "$folder/seen"
grep -q "first: 3.15.1 ValueError Incomplete or corrupted file" "$folder/seen"
