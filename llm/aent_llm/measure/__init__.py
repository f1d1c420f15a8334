"""What a model does: completions, scores, the effect of a clamp, runs side by side."""
