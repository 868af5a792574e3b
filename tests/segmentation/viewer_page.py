"""What a page of the viewer holds, read as its script reads it."""

import base64
import json
import re
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt


def read_viewer_page(page: bytes) -> tuple[dict[str, Any], dict[str, npt.NDArray[np.uint8]]]:
    """The description of a case and its volumes [X, Y, Z]."""
    text = page.decode()
    (described,) = re.findall(r'<script type="application/json" id="case">(.*)</script>', text)
    info = json.loads(described)
    volumes = {}
    for key, packed in re.findall(r'<script type="text/plain" id="volume-(\w+)">(.*)</script>', text):
        entry = info["modalities"].get(key) or info["labels"][key]
        flat = np.frombuffer(zlib.decompress(base64.b64decode(packed)), np.uint8).copy()
        for start in range(entry["stride"]):
            flat[start :: entry["stride"]] = np.cumsum(flat[start :: entry["stride"]], dtype=np.uint8)
        volumes[key] = flat.reshape(entry.get("shape", info["shape"]), order="F")
    return info, volumes
