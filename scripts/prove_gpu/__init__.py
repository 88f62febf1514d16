"""What a GPU host can do: facts of the card, tests, speed, quality and endurance; see `scripts/prove-gpu`.

Each stage runs in a process of its own and adds its part to `gpu-report.json` as it goes.
"""
