"""Trains the embedded checkpoint in stages; `scripts/train_embedded` runs all of them."""
