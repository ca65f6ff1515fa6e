"""GPU tests run under vLLM's own check: a step that waits for the device raises. Read when vLLM is
imported.
"""

import os

os.environ.setdefault("VLLM_GPU_SYNC_CHECK", "error")
