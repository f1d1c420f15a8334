"""Hypothesis draws the same examples every time, so that a red test is red for everybody.

To search further: ``pytest --hypothesis-profile=explore``, as ``make test-slow`` does.
"""

import os
from pathlib import Path

from hypothesis import settings

if not any(Path("/dev").glob("nvidia[0-9]*")):
    os.environ.setdefault("TRITON_INTERPRET", "1")  # GPU kernels run anyway; Triton looks here when first imported

settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None, print_blob=True)
settings.load_profile("same")
