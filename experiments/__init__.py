"""Studies of many training runs, whose records the figures draw; run from a checkout, not installed."""
