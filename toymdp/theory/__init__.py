"""The propositions of the paper, their bounds, and the attacks on them."""
