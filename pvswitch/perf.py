# SPDX-License-Identifier: Apache-2.0
"""The counters of ports, workers and queues as the API shows them: ratios, and bursts by powers of two.

Used by `ports.py`.
"""

from __future__ import annotations

from collections import Counter

from pvswitch.datapath import Perf, PortCounters
from pvswitch.state import QueuePerf, WorkerPerf
from pvswitch.switch_port import PolledQueue


def worker_perf(worker: int, perf: Perf) -> WorkerPerf:
    """Return what a worker has spent."""
    bursts: Counter[str] = Counter()
    for size, count in enumerate(perf.burst_histogram):
        if count:
            bursts[str(1 << (size.bit_length() - 1))] += count
    return WorkerPerf(
        name=f"worker{worker}",
        worker=worker,
        packets=perf.packets,
        cycles=perf.busy_cycles,
        idle_cycles=perf.idle_cycles,
        cycles_per_packet=_ratio(perf.busy_cycles, perf.packets),
        busy_seconds=_ratio(perf.busy_cycles, perf.cycles_per_second) or 0.0,
        busy_share=_ratio(perf.busy_cycles, perf.total_cycles) or 0.0,
        burst_count=perf.bursts,
        mean_burst=_ratio(perf.packets, perf.bursts),
        bursts=dict(bursts),
        queue_full=perf.queue_full,
        notifications=perf.notifications,
        notifications_suppressed=perf.notifications_suppressed,
        kicks=perf.kicks,
        polls=perf.loops,
        sleeps=perf.sleeps,
        sleeping=perf.sleeping,
    )


def queue_perf(port: str, queue: PolledQueue, total_cycles: int) -> QueuePerf:
    """Return what a queue has cost, of all the cycles that its worker had."""
    return QueuePerf(
        name=f"{port}/{queue.queue}",
        port=port,
        queue=queue.queue,
        worker=queue.worker,
        packets=queue.packets,
        cycles=queue.cycles,
        cycles_per_packet=_ratio(queue.cycles, queue.packets),
        busy_share=_ratio(queue.cycles, total_cycles) or 0.0,
        pinned=queue.pinned,
    )


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def stat_values(counters: PortCounters) -> dict[str, int | dict[str, int]]:
    """Return the fields of PortStats but for its queues. rx_errors are the malformed frames among rx_dropped."""
    return {
        **counters.values,
        "rx_dropped": sum(counters.rx_drops.values()),
        "rx_errors": counters.rx_drops.get("malformed", 0),
        "tx_dropped": sum(counters.tx_drops.values()),
        "tx_errors": 0,
        "rx_drops": counters.rx_drops,
        "tx_drops": counters.tx_drops,
    }
