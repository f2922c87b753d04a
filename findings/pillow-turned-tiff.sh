#!/usr/bin/env bash
# Pillow 13.0.0: an uncompressed TIFF whose orientation tag turns it by 90 degrees, as microscopes and scanners write, with 8-bit
# grey, palette, CMYK or 16-bit grey pixels, not square.
# Expected: the same upright picture whether the file is opened by its path or from its bytes.
# Seen: from its bytes it is right. By its path, Pillow maps the pixels into memory with width and height exchanged, so each row
# begins at the wrong place, and the size stays that of the turned file. RGB and compressed files are not mapped and are right.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pillow==13.0.0 numpy==2.4.6
cat > "$folder/turned.py" <<'PYTHON'
import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image

values = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
images = {
    "L": Image.fromarray(values[..., 0]),
    "P": Image.fromarray(values).convert("P"),
    "CMYK": Image.fromarray(values).convert("CMYK"),
    "I;16": Image.fromarray(values[..., 0].astype(np.uint16) * 257),
    "RGB": Image.fromarray(values),
}
for mode, image in images.items():
    path = Path(sys.argv[1], "a.tif")
    image.save(path, tiffinfo={274: 6})
    upright = np.rot90(np.asarray(image), -1)
    found = {}
    for name, source in (("path", path), ("bytes", io.BytesIO(path.read_bytes()))):
        with Image.open(source) as opened:
            opened.load()
            found[name] = "right" if np.array_equal(np.asarray(opened), upright) else f"wrong, {opened.size}"
    print(mode, found)
PYTHON
"$folder/venv/bin/python" "$folder/turned.py" "$folder" > "$folder/seen"
cat "$folder/seen"
diff "$folder/seen" - <<'SEEN'
L {'path': 'wrong, (60, 40)', 'bytes': 'right'}
P {'path': 'wrong, (60, 40)', 'bytes': 'right'}
CMYK {'path': 'wrong, (60, 40)', 'bytes': 'right'}
I;16 {'path': 'wrong, (60, 40)', 'bytes': 'right'}
RGB {'path': 'right', 'bytes': 'right'}
SEEN
