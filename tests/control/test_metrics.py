# SPDX-License-Identifier: Apache-2.0
"""/metrics: what Prometheus reads."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from pvswitch import metrics as metrics_module
from pvswitch.state import PortState, PortStats, QueueStats, WorkerPerf
from tests.control.conftest import MAC, Switch

V1 = "/api/v1"
OPENMETRICS = {"Accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"}


async def scrape(switch: Switch, **headers: str) -> tuple[str, str]:
    async with switch.session.get("http://switch/metrics", headers=headers) as answer:
        assert answer.status == 200
        return await answer.text(), answer.headers["Content-Type"]


def samples(families: Iterable[Any]) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    found: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    for family in families:
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found, f"{key} is there twice"
            found[key] = sample.value
    return found


def value(found: Any, name: str, **labels: str) -> float:
    return float(found[name, frozenset(labels.items())])


@pytest.fixture
def busy(switch: Switch, monkeypatch: pytest.MonkeyPatch) -> Switch:
    queues = [
        QueueStats(queue=0, direction="rx", packets=7, bytes=420, cycles=350, worker=0),
        QueueStats(queue=0, direction="tx", packets=0, worker=0),
        QueueStats(queue=1, direction="rx"),
        QueueStats(queue=2, direction="rx", packets=1),
    ]
    stats = PortStats(rx_packets=7, tx_bytes=9, rx_dropped=2, rx_drops={"no_destination": 2}, queues=queues)
    monkeypatch.setattr(switch.dataplane, "port_stats", lambda _: stats)
    state = switch.dataplane.port_state
    monkeypatch.setattr(
        switch.dataplane, "port_state", lambda name: PortState(link="up") if name == "vm1" else state(name)
    )
    perf = WorkerPerf(
        name="worker0",
        worker=0,
        packets=7,
        cycles=700,
        idle_cycles=70,
        busy_seconds=0.5,
        bursts={"4": 2},
        queue_full=4,
        notifications=5,
        notifications_suppressed=6,
        kicks=8,
        sleeps=3,
        sleeping=True,
    )
    monkeypatch.setattr(switch.dataplane, "perf", lambda: [perf])
    switch.dataplane.learn("br0", MAC, "vm1")
    return switch


@pytest.mark.parametrize("openmetrics", [False, True])
async def test_what_there_is(busy: Switch, openmetrics: bool) -> None:
    await busy.ask("GET", f"{V1}/ports/nobody")
    text, content_type = await scrape(busy, **(OPENMETRICS if openmetrics else {}))
    assert content_type.startswith("application/openmetrics-text" if openmetrics else "text/plain; version=0.0.4")
    found = samples((parse_openmetrics if openmetrics else parse_text)(text))
    port = {"port": "vm1", "bridge": "br0"}
    assert value(found, "pvswitch_port_rx_packets_total", **port) == 7
    assert value(found, "pvswitch_port_tx_bytes_total", **port) == 9
    assert value(found, "pvswitch_port_rx_dropped_total", **port) == 2
    assert value(found, "pvswitch_port_rx_1_to_64_packets_total", **port) == 0
    assert value(found, "pvswitch_port_drops_total", **port, direction="rx", reason="no_destination") == 2
    assert value(found, "pvswitch_port_link_up", **port) == 1
    assert value(found, "pvswitch_port_link_up", port="vm2", bridge="br0") == 0
    assert value(found, "pvswitch_port_queue_packets_total", **port, queue="0", direction="rx") == 7
    assert value(found, "pvswitch_port_queue_bytes_total", **port, queue="0", direction="rx") == 420
    queues = {dict(labels)["queue"] for name, labels in found if name == "pvswitch_port_queue_packets_total"}
    assert queues == {"0", "2"}, "queues that have run"
    assert value(found, "pvswitch_fdb_entries", bridge="br0") == 1
    assert value(found, "pvswitch_fdb_limit", bridge="lan") == 8192
    assert value(found, "pvswitch_flows", bridge="br0") == 0
    assert value(found, "pvswitch_worker_packets_total", worker="0") == 7
    assert value(found, "pvswitch_worker_busy_cycles_total", worker="0") == 700
    assert value(found, "pvswitch_worker_busy_seconds_total", worker="0") == 0.5
    assert value(found, "pvswitch_worker_sleeps_total", worker="0") == 3
    assert value(found, "pvswitch_worker_bursts_total", worker="0", size="4") == 2
    assert value(found, "pvswitch_worker_idle_cycles_total", worker="0") == 70
    assert value(found, "pvswitch_worker_queue_full_total", worker="0") == 4
    assert value(found, "pvswitch_worker_notifications_total", worker="0") == 5
    assert value(found, "pvswitch_worker_notifications_suppressed_total", worker="0") == 6
    assert value(found, "pvswitch_worker_kicks_total", worker="0") == 8
    assert value(found, "pvswitch_worker_sleeping", worker="0") == 1
    assert value(found, "pvswitch_port_queue_cycles_total", **port, queue="0", direction="rx") == 350
    assert (
        "pvswitch_port_queue_cycles_total",
        frozenset({*port.items(), ("queue", "0"), ("direction", "tx")}),
    ) not in found
    assert value(found, "pvswitch_lost_total", what="events") == 3
    asked = {"method": "GET", "path": f"{V1}/ports/{{name}}"}
    assert value(found, "pvswitch_api_requests_total", **asked, status="404") == 1
    assert value(found, "pvswitch_api_request_duration_seconds_count", **asked) == 1
    assert {name for name, _ in found} >= {"pvswitch_build_info", "process_open_fds", "process_cpu_seconds_total"}


async def test_series_have_bounds_whatever_clients_send(busy: Switch) -> None:
    for i, method in enumerate(["MKCOL", "COPY", "LOCK"]):
        await busy.ask("GET", f"/nowhere/{i}")
        await busy.ask(method, f"/nowhere/{i}")
    found = samples(parse_text((await scrape(busy))[0]))
    requests = {labels for name, labels in found if name == "pvswitch_api_requests_total"}
    assert len(requests) == 2
    assert {"other", "GET"} == {dict(labels)["method"] for labels in requests}


async def test_what_goes_during_a_scrape_is_left_out(busy: Switch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_module, "SLICE", 1)
    real, reads = busy.controller.config, 0

    def config(_: Any) -> Any:
        nonlocal reads
        reads += 1
        return real if reads < 3 else real.model_copy(update={"ports": {"vm1": real.ports["vm1"]}})

    monkeypatch.setattr(type(busy.controller), "config", property(config))
    text, _ = await scrape(busy)
    assert 'port="vm1"' in text
    assert 'port="vm2"' not in text


async def test_a_scrape_of_many_ports_lets_others_have_their_turn(
    busy: Switch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted in turns of the loop, not in time: between two slices everybody else runs."""
    config = busy.controller.config
    port = config.ports["vm1"]
    many = config.model_copy(update={"ports": {f"p{i}": port for i in range(1024)}})
    monkeypatch.setattr(type(busy.controller), "config", property(lambda _: many))
    state = PortState(link="up")
    read = 0

    def counting(_: str) -> PortState:
        nonlocal read
        read += 1
        return state

    monkeypatch.setattr(busy.dataplane, "port_state", counting)
    longest = last = 0

    async def watch() -> None:
        nonlocal longest, last
        while True:
            longest, last = max(longest, read - last), read
            await asyncio.sleep(0)

    watcher = asyncio.create_task(watch())
    text, _ = await scrape(busy)
    watcher.cancel()
    assert text.count("pvswitch_port_link_up{") == 1024
    assert 0 < longest <= 2 * metrics_module.SLICE


async def test_flows_are_counted_and_meters_told(switch: Switch) -> None:
    await switch.ask("PUT", f"{V1}/bridges/br0/meters/slow", json={"rate_pps": 10})
    await switch.ask("POST", f"{V1}/bridges/br0/flows:batch", json={"add": "ip,actions=drop\narp,actions=meter:slow"})
    text, _ = await scrape(switch)
    found = samples(parse_text(text))
    assert value(found, "pvswitch_flows", bridge="br0") == 2
    assert value(found, "pvswitch_flows_bytes", bridge="br0") == 200
    assert value(found, "pvswitch_meter_packets_total", bridge="br0", meter="slow") == 5
    assert value(found, "pvswitch_meter_dropped_packets_total", bridge="br0", meter="slow") == 2
    assert "pvswitch_flow_" not in text, "no series for each flow"
