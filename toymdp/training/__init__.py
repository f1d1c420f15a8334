"""Many runs of a tabular learner at once, as arrays."""
