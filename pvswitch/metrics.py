# SPDX-License-Identifier: Apache-2.0
"""The counters of the switch for Prometheus.

`Metrics` owns a registry of its own. What the process and the API do is counted as it happens; what the data plane has
counted is read when somebody asks. With 1,024 ports that is work for a while: reading is cut into slices on the event
loop, which alone may talk to the data plane, and the text is made in a thread. One scrape is made at a time.

Names and directions are those of the API: a port's tx is what its guest receives. A queue's series begin when it has
first run. Used by `api.metrics` and by the daemon.
"""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pvswitch.controller import Controller, Dataplane
from pvswitch.state import PortStats, QueueStats, WorkerPerf

SLICE = 16  # ports that are read before others have their turn
LATENCY_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
METHODS = frozenset({"GET", "HEAD", "PUT", "PATCH", "POST", "DELETE", "OPTIONS"})

_PORT_COUNTERS = tuple(name for name, field in PortStats.model_fields.items() if field.annotation is int)
_QUEUE_COUNTERS = ("packets", "bytes", "notifications", "notifications_suppressed", "cycles")
_WORKER_COUNTERS = {
    "packets": "frames taken from rings and uplinks",
    "cycles": "TSC cycles spent on bursts",
    "idle_cycles": "TSC cycles spent on looking in vain",
    "queue_full": "copies that found their receiver full",
    "notifications": "guests called",
    "notifications_suppressed": "guests that had asked not to be called",
    "kicks": "kicks of guests",
    "polls": "rounds of the poll loop",
    "sleeps": "times it went to sleep",
}
_METER_COUNTERS = {
    "packets": "frames that came to a meter",
    "bytes": "bytes that came to a meter",
    "dropped_packets": "frames that were too many for a meter",
    "dropped_bytes": "bytes that were too many for a meter",
}


class Metrics:
    """What a scrape shows."""

    def __init__(self, controller: Controller, dataplane: Dataplane, version: str) -> None:
        """Read from these two; `version` is the program's."""
        self._controller = controller
        self._dataplane = dataplane
        self._scraping = asyncio.Lock()
        self._registry = CollectorRegistry()
        self._switch = _Families()
        self._registry.register(self._switch)
        ProcessCollector(registry=self._registry)
        self._build = GaugeMetricFamily("pvswitch_build_info", "which program this is", labels=["version", "python"])
        self._build.add_metric([version, platform.python_version()], 1)
        self._requests = Counter(
            "pvswitch_api_requests",
            "requests answered, by the template of their path",
            ["method", "path", "status"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "pvswitch_api_request_duration_seconds",
            "from a request's headers to its answer; streams excepted",
            ["method", "path"],
            buckets=LATENCY_BUCKETS,
            registry=self._registry,
        )

    def count_request(self, method: str, path: str, status: int, seconds: float | None) -> None:
        """Count an answer; `path` is the template of a route, `seconds` None for a stream."""
        method = method if method in METHODS else "other"
        self._requests.labels(method, path, str(status)).inc()
        if seconds is not None:
            self._seconds.labels(method, path).observe(seconds)

    async def scrape(self, accept: str) -> tuple[bytes, str]:
        """Return the text and its content type, in the format that an Accept header asks for."""
        encode, content_type = choose_encoder(accept)
        async with self._scraping:
            self._switch.families = await self._read()
            try:
                return await asyncio.to_thread(encode, self._registry), content_type
            finally:
                self._switch.families = []

    async def _read(self) -> list[Metric]:
        ports = _Ports()
        for turn, name in enumerate(list(self._controller.config.ports)):
            if turn % SLICE == 0:
                await asyncio.sleep(0)
            config = self._controller.config
            if name in config.ports:  # it may have gone in our pause
                ports.add(
                    name,
                    config.port_bridge(name),
                    self._dataplane.port_state(name).link == "up",
                    self._dataplane.port_stats(name),
                )
        return [
            self._build,
            *ports.families(),
            *self._bridges(),
            *self._flows(),
            *_workers(self._dataplane.perf()),
            *self._lost(),
            self._tunnels(),
        ]

    def _bridges(self) -> list[Metric]:
        entries = GaugeMetricFamily("pvswitch_fdb_entries", "addresses that a bridge knows", labels=["bridge"])
        limit = GaugeMetricFamily("pvswitch_fdb_limit", "addresses that a bridge can know", labels=["bridge"])
        for name, bridge in self._controller.config.bridges.items():
            entries.add_metric([name], self._dataplane.fdb_count(name))
            limit.add_metric([name], bridge.fdb_size)
        return [entries, limit]

    def _flows(self) -> list[Metric]:
        flows = GaugeMetricFamily("pvswitch_flows", "flows of a bridge", labels=["bridge"])
        memory = GaugeMetricFamily("pvswitch_flows_bytes", "memory that they take in the core", labels=["bridge"])
        meters = {
            name: CounterMetricFamily(f"pvswitch_meter_{name}", text, labels=["bridge", "meter"])
            for name, text in _METER_COUNTERS.items()
        }
        for name, bridge in self._controller.config.bridges.items():
            flows.add_metric([name], len(bridge.flows))
            memory.add_metric([name], self._dataplane.flow_memory(name))
            for meter in bridge.meters:
                stats = self._dataplane.meter_stats(name, meter)
                for counter, family in meters.items():
                    family.add_metric([name, meter], getattr(stats, counter))
        return [flows, memory, *meters.values()]

    def _tunnels(self) -> Metric:
        drops = CounterMetricFamily(
            "pvswitch_tunnel_drops", "packets that came to an endpoint and to no tunnel", labels=["endpoint", "reason"]
        )
        for endpoint in self._dataplane.tunnels.endpoints():
            for reason, count in endpoint.drops.items():
                drops.add_metric([endpoint.name, reason], count)
        return drops

    def _lost(self) -> list[Metric]:
        lost = CounterMetricFamily(
            "pvswitch_lost", "events and frames that found no room on their way to the control plane", labels=["what"]
        )
        for what, count in self._dataplane.lost().items():
            lost.add_metric([what], count)
        return [lost]


class _Families(Collector):
    """Hands on what was read for this scrape."""

    def __init__(self) -> None:
        self.families: list[Metric] = []

    def collect(self) -> Iterable[Metric]:
        return self.families


class _Ports:
    """The families of the ports, filled port by port."""

    def __init__(self) -> None:
        labels = ["port", "bridge"]
        self._up = GaugeMetricFamily("pvswitch_port_link_up", "whether the link is up", labels=labels)
        self._counters = {
            name: CounterMetricFamily(
                f"pvswitch_port_{name}", f"{name.replace('_', ' ')}, the switch's view", labels=labels
            )
            for name in _PORT_COUNTERS
        }
        self._drops = CounterMetricFamily(
            "pvswitch_port_drops", "frames dropped", labels=[*labels, "direction", "reason"]
        )
        self._queues = {
            name: CounterMetricFamily(
                f"pvswitch_port_queue_{name}",
                f"{name.replace('_', ' ')} of a queue, the switch's view",
                labels=[*labels, "queue", "direction"],
            )
            for name in _QUEUE_COUNTERS
        }

    def add(self, port: str, bridge: str, up: bool, stats: PortStats) -> None:
        labels = [port, bridge]
        self._up.add_metric(labels, up)
        for name, family in self._counters.items():
            family.add_metric(labels, getattr(stats, name))
        for direction, drops in (("rx", stats.rx_drops), ("tx", stats.tx_drops)):
            for reason, count in drops.items():
                self._drops.add_metric([*labels, direction, reason], count)
        for queue in stats.queues:
            if _has_run(queue):
                place = [*labels, str(queue.queue), queue.direction]
                for name, family in self._queues.items():
                    if (value := getattr(queue, name)) is not None:
                        family.add_metric(place, value)

    def families(self) -> Iterator[Metric]:
        yield self._up
        yield from self._counters.values()
        yield self._drops
        yield from self._queues.values()


def _has_run(queue: QueueStats) -> bool:
    return queue.worker is not None or queue.packets > 0


def _workers(perf: list[WorkerPerf]) -> Iterator[Metric]:
    for name, text in _WORKER_COUNTERS.items():
        family = CounterMetricFamily(
            f"pvswitch_worker_{'busy_cycles' if name == 'cycles' else name}", text, labels=["worker"]
        )
        for worker in perf:
            family.add_metric([str(worker.worker)], getattr(worker, name))
        yield family
    seconds = CounterMetricFamily("pvswitch_worker_busy_seconds", "time spent on bursts", labels=["worker"])
    bursts = CounterMetricFamily(
        "pvswitch_worker_bursts", "bursts by the lower bound of their size", labels=["worker", "size"]
    )
    for worker in perf:
        seconds.add_metric([str(worker.worker)], worker.busy_seconds)
        for size, count in worker.bursts.items():
            bursts.add_metric([str(worker.worker), size], count)
    sleeping = GaugeMetricFamily("pvswitch_worker_sleeping", "whether it sleeps at this moment", labels=["worker"])
    for worker in perf:
        sleeping.add_metric([str(worker.worker)], worker.sleeping)
    yield seconds
    yield bursts
    yield sleeping
