"""Timings of our code beside its peers and its floor; run from the root of a checkout, not installed."""
