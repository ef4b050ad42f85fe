"""Embedders: meaning as vectors, computed locally."""

import os

# onnxruntime sends what machine and program it runs in to its maker unless this is set before it is first imported.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
