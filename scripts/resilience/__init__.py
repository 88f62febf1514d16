"""Fault injection, overload and long runs: scripts/chaos, scripts/soak and scripts/fuzz."""
