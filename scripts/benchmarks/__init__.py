"""How fast the service is, beside what a user would otherwise run; see `scripts/bench`."""
