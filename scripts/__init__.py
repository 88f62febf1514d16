"""What people and CI both run; each takes `--help`."""
