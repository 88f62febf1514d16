"""Bytes to pixels and back. Decoding runs in confined processes."""
