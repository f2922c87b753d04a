#!/usr/bin/env bash
# Pillow 13.0.0: a TIFF of signed 8-bit values (SampleFormat 2), as difference and phase images are stored.
# Expected: the values that were stored, as tifffile reads them, or an error.
# Seen: Pillow opens it as unsigned grey (mode L), so -128 to -1 become 128 to 255: the darkest pixels are brighter than all others.
# The same values stored with 16 bits are read correctly (mode I).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pillow==13.0.0 numpy==2.4.6 tifffile==2026.3.3
cat > "$folder/signed.py" <<'PYTHON'
import sys
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

for kind in (np.int8, np.int16):
    path = Path(sys.argv[1], "a.tif")
    tifffile.imwrite(path, np.array([[-128, -1, 0, 127]], dtype=kind), photometric="minisblack")
    with Image.open(path) as image:
        print(kind.__name__, image.mode, np.asarray(image).tolist(), "stored:", tifffile.imread(path).tolist())
PYTHON
"$folder/venv/bin/python" "$folder/signed.py" "$folder" > "$folder/seen"
cat "$folder/seen"
diff "$folder/seen" - <<'SEEN'
int8 L [[128, 255, 0, 127]] stored: [[-128, -1, 0, 127]]
int16 I [[-128, -1, 0, 127]] stored: [[-128, -1, 0, 127]]
SEEN
