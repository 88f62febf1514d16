"""How log lines look, in the API process and in the workers alike."""

import logging
import os
import sys


def configure(level: str) -> None:
    """Send all log lines of `level` and above to standard error.

    Libraries are kept to their errors: they would put the caller's prompt, or pieces of a form, into the log.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    logging.basicConfig(
        level=level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s", force=True
    )
    for noisy in ("diffusers", "transformers", "httpx2", "httpcore2", "PIL", "python_multipart"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
