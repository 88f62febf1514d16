"""The child process that drives a model step by step. Imports no torch."""
