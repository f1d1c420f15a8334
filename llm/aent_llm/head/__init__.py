"""The fused head: log-probability, entropy and clamped entropy of every token, without all logits at once."""
