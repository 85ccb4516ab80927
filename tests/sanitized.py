"""Runs Python in a process of its own with the runtime of GCC's sanitizers, for libraries compiled with them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FLAGS = "-march=native", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"


def run_sanitized(code):
    """Run code that may import what lies in tests/, and loads its libraries with `sanitized.FLAGS`."""
    runtime = subprocess.run(["c++", "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()
    if not Path(runtime).is_absolute():
        pytest.skip("the compiler has no address sanitizer")
    env = {**os.environ, "LD_PRELOAD": runtime, "ASAN_OPTIONS": "detect_leaks=0"}
    command, here = [sys.executable, "-c", code], Path(__file__).parent
    done = subprocess.run(command, cwd=here, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
