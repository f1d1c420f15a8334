"""Hypothesis draws the same examples every time, so that a red test is red for everybody.

To search further: ``pytest --hypothesis-profile=explore``, as ``make test-slow`` does.
"""

from hypothesis import settings

settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None, print_blob=True)
settings.load_profile("same")
