"""All Prometheus metrics, in a registry of their own: two apps in one process do not share counts."""

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    disable_created_metrics,
    generate_latest,
)

from app import __version__
from app.errors import CODES

_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


_STAGES = (
    *("receive", "decode", "queue", "encode_prompt", "encode_image", "denoise", "vae"),
    *("png", "webp", "jpeg", "sign"),
)


class Metrics:
    """The series of one app. Durations are in seconds, sizes in bytes."""

    def __init__(self) -> None:
        # No series with the time at which each counter was made.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        registry = self.registry = CollectorRegistry()
        self.requests = Counter(
            "img2img_requests", "HTTP requests by route and status.", ["route", "code"], registry=registry
        )
        self.request_seconds = Histogram(
            "img2img_request_duration_seconds",
            "From headers to last byte, by outcome: success (a status below 400) or error.",
            ["route", "outcome"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.in_flight = Gauge(
            "img2img_inflight_requests", "HTTP requests in flight, except probes.", registry=registry
        )
        self.stage_seconds = Histogram(
            "img2img_stage_duration_seconds",
            "Time until a request's body has arrived (receive), and of an image in each other stage.",
            ["stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.rejected = Counter(
            "img2img_rejected", "Requests answered with an error, by its code.", ["reason"], registry=registry
        )
        self.images = Counter("img2img_images", "Images made.", registry=registry)
        self.redecoded = Counter(
            "img2img_redecoded", "Images decoded again in float32 because they held NaN.", registry=registry
        )
        self.cache = Counter(
            "img2img_cache_lookups",
            "Prompts and images whose encoding was in the cache (hit) or not (miss).",
            ["kind", "result"],
            registry=registry,
        )
        self.waiting = Gauge("img2img_queue_depth", "Jobs that wait for a worker.", registry=registry)
        self.on_board = Gauge("img2img_jobs_on_board", "Jobs that a worker runs.", registry=registry)
        self.batch_size = Histogram(
            "img2img_batch_size", "Jobs that shared a UNet call.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry
        )
        self.batch_limit = Gauge(
            "img2img_batch_limit",
            "Largest number of jobs that share a UNet call: as set or measured, or lower after too little memory.",
            ["device"],
            registry=registry,
        )
        self.tick_seconds = Histogram(
            "img2img_tick_duration_seconds", "Time of one UNet call on the device.", buckets=_SECONDS, registry=registry
        )
        self.worker_deaths = Counter(
            "img2img_worker_deaths", "Worker processes that ended unexpectedly, by cause.", ["cause"], registry=registry
        )
        self.decoder_deaths = Counter(
            "img2img_decoder_deaths", "Decoder processes that ended while they decoded an image.", registry=registry
        )
        self.worker_memory = Gauge(
            "img2img_worker_peak_memory_bytes", "Largest resident size of a worker.", ["device"], registry=registry
        )
        self.device_memory = Gauge(
            "img2img_gpu_memory_bytes",
            "Memory of a GPU after its last image: allocated by tensors, reserved by torch, and free.",
            ["device", "kind"],
            registry=registry,
        )
        self.ready = Gauge("img2img_ready", "1 while a requested image can be made.", registry=registry)
        self.worker_ready = Gauge(
            "img2img_worker_ready", "1 while a device's worker can make images.", ["device"], registry=registry
        )
        self.certificate_expiry = Gauge(
            "img2img_certificate_expiry_timestamp_seconds",
            "When the signing certificate expires, in Unix time; 0 without one.",
            registry=registry,
        )
        self.model = Info("img2img_model", "The model that a device's worker loaded.", ["device"], registry=registry)
        Info("img2img_build", "The version of this program.", registry=registry).info({"version": __version__})
        self._create_series()

    def _create_series(self) -> None:
        """Create all series with known labels: otherwise the first event would be no increase, and in no panel."""
        for cause in ("exit", "hang", "garbage", "device", "canary", "spawn"):
            self.worker_deaths.labels(cause)
        for code in CODES:
            self.rejected.labels(code)
        for stage in _STAGES:
            self.stage_seconds.labels(stage)
        for kind in ("prompt", "image"):
            for result in ("hit", "miss"):
                self.cache.labels(kind, result)

    def render(self) -> bytes:
        """All series in Prometheus' text format."""
        return generate_latest(self.registry)
