"""The child process: drives a model step by step. Imports no torch."""
