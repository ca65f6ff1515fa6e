"""GPU tests run under vLLM's own check: a step that waits for the device raises. Read when vLLM is
imported.
"""

import os
import sys
from pathlib import Path

# Where pytest names a test's module "gpu.test_...", a process of its own (apart.py) finds it.
sys.path.append(str(Path(__file__).parents[1]))
os.environ.setdefault("VLLM_GPU_SYNC_CHECK", "error")
