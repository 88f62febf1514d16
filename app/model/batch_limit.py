"""The number of jobs that share a UNet call. Imports no torch, so that the torch-free models of tests can use it."""

from collections.abc import Mapping

CANDIDATES = (1, 2, 4)
"""The numbers of rows that are measured where the setting is `auto`; the last one holds until then."""

_ENOUGH = 0.9


def choose(seconds: Mapping[int, float]) -> int:
    """The best number of jobs on board, by the seconds that a UNet call takes for each number of rows.

    It is the smallest one that makes at least nine tenths of the most images a second. Where one row keeps the device
    busy, more rows make an image hardly cheaper, and the first of them would be finished with the last.
    """
    rates = {rows: rows / taken for rows, taken in seconds.items()}
    return min(rows for rows, rate in rates.items() if rate >= _ENOUGH * max(rates.values()))
