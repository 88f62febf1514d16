"""The worker killed and stopped under load, and two minutes of mixed traffic, with the real model on the device."""

from app.engine.engine import LOADER
from scripts.benchmarks.report import Outcome
from scripts.prove_gpu import device
from scripts.prove_gpu.record import Part
from scripts.prove_gpu.stages import Context
from scripts.resilience import faults, soak

REQUESTS = {"cuda": 100, "cpu": 24}
"""Of each kind of fault, and of a run without one, by the device. They must last for longer than a second."""

SILENCE = {"cuda": 4.0, "cpu": 30.0}
"""Seconds after which a worker with jobs counts as stopped. A busy CPU is slow."""

MINUTES = 2.0


def run_chaos(context: Context, part: Part) -> None:
    """SIGKILL and SIGSTOP to the worker. Each answer must have the bytes that it has without a fault."""
    # Jobs do not share calls: in a call of another size the same image may differ in its last bits.
    outcome = faults.case(
        REQUESTS[device.name()],
        every=60,
        loader=LOADER,
        **_knobs(context),
        max_batch=1,
        tick_timeout_seconds=SILENCE[device.name()],
        load_timeout_seconds=200,
    )
    _keep(part, outcome)


def run_soak(context: Context, part: Part) -> None:
    """Good, bad, cancelled and slow requests; nothing may grow."""
    outcome, _ = soak.case(MINUTES, LOADER, **_knobs(context))
    _keep(part, outcome)


def _knobs(context: Context) -> dict[str, object]:
    """The settings by their names."""
    weights = context.weights()
    return {"model": weights.model, "vae": weights.vae, "devices": device.name(), "offline": True}


def _keep(part: Part, outcome: Outcome) -> None:
    for row in outcome.rows:
        part.row(outcome.title, **dict(zip(outcome.columns, row, strict=True)))
    part.goals += outcome.goals
