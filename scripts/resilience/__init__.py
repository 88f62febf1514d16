"""What the service does when things go wrong: run by scripts/chaos and scripts/soak."""
