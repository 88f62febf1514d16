"""Writes the generated parts of `docs/` from the code: `scripts/docs` runs it.

A part of a page stands between `<!-- generated: NAME -->` and `<!-- end of NAME -->`. `PARTS` in `__main__.py` names
the function that writes it.
"""
