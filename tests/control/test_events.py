# SPDX-License-Identifier: Apache-2.0
"""The bus, and the stream of events as a client sees it."""

from __future__ import annotations

import asyncio
import gc
import json
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
from pydantic import TypeAdapter

from pvswitch.events import BATCH, AgedEvent, BrokenEvent, Entry, Events, EventStream, LearnedEvent, TooManySubscribers
from tests.control.conftest import Switch

V1 = "/api/v1"
EVENTS = f"{V1}/events"
SECONDS = 20.0


def broken(detail: object) -> BrokenEvent:
    return BrokenEvent(port="vm1", bridge="br0", detail=str(detail))


AGED = AgedEvent(bridge="br0", port="vm1", mac="02:00:00:00:00:01", vid=0)


def learned(number: int) -> LearnedEvent:
    return LearnedEvent(bridge="br0", port="vm1", mac=f"02:00:00:00:00:{number:02x}", vid=0)


def details(entries: list[Entry]) -> list[str]:
    """Each event in a word: its detail, or its type."""
    return [json.loads(entry.data).get("detail", entry.type) for entry in entries]


# ---- the bus ----


async def test_everybody_gets_what_happens_from_now_on() -> None:
    events = Events()
    events.publish(broken("before"))
    with events.subscribe() as one, events.subscribe() as two:
        for i in range(3):
            events.publish(broken(i))
        assert details(one.take()) == details(two.take()) == ["0", "1", "2"]
        assert one.take() == []
        assert await one.next(0) == []


async def test_who_waits_is_woken() -> None:
    events = Events()
    with events.subscribe() as one:
        waiting = asyncio.create_task(one.next(SECONDS))
        await asyncio.sleep(0)
        assert not waiting.done()
        events.publish(broken("now"))
        entries = await waiting
        assert entries is not None
        assert details(entries) == ["now"]


def test_who_is_too_slow_is_told_how_much_it_missed() -> None:
    events = Events(kept=10)
    with events.subscribe() as slow, events.subscribe() as quick:
        for i in range(25):
            events.publish(broken(i))
            assert details(quick.take()) == [str(i)]
        entries = slow.take()
        assert details(entries) == ["reset", *(str(i) for i in range(15, 25))]
        assert json.loads(entries[0].data)["lost"] == 15
        numbers = [int(entry.id.partition("-")[2]) for entry in entries]
        assert numbers == list(range(15, 26))  # the id of the reset is that of the last event missed
        events.publish(broken("next"))
        assert details(slow.take()) == ["next"]


def test_a_subscriber_holds_no_more_than_a_batch() -> None:
    events = Events(kept=1000)
    with events.subscribe() as slow:
        for i in range(500):
            events.publish(broken(i))
        seen: list[str] = []
        while slow.behind:
            part = slow.take()
            assert 0 < len(part) <= BATCH
            seen += details(part)
        assert seen == [str(i) for i in range(500)]


def test_who_comes_back_goes_on_where_it_was() -> None:
    events = Events(kept=10)
    with events.subscribe() as one:
        events.publish(broken("a"))
        (seen,) = one.take()
    events.publish(broken("b"))
    with events.subscribe(seen.id) as again:
        assert details(again.take()) == ["b"]
    for i in range(20):
        events.publish(broken(i))
    with events.subscribe(seen.id) as late:
        entries = late.take()
        assert details(entries) == ["reset", *(str(i) for i in range(10, 20))]
        assert json.loads(entries[0].data)["lost"] == 11


@pytest.mark.parametrize("last_id", ["", "-", "x", "{}", "{}-", "{}-x", "{}--1", "{}-99", "other-1", "{}-" + "9" * 99])
def test_an_id_of_another_process_is_a_reset(last_id: str) -> None:
    events = Events()
    events.publish(broken("before"))
    epoch = events.id_of(0).partition("-")[0]
    with events.subscribe(last_id.format(epoch)) as one:
        assert one.behind
        events.publish(broken("a"))
        entries = one.take()
        assert details(entries) == ["reset", "a"]
        assert "lost" not in json.loads(entries[0].data)
        assert not one.behind


def test_only_the_types_that_are_wanted_come() -> None:
    events = Events()
    with events.subscribe(types=["aged"]) as one:
        events.publish(broken("a"))
        events.publish(broken("b"))
        assert (one.take(), one.behind) == ([], False)


async def test_addresses_are_limited_and_what_was_left_out_is_told() -> None:
    events = Events(rate=3, window=0.05)
    with events.subscribe() as one:
        for i in range(20):
            events.publish(learned(i))
        events.publish(broken("not limited"))
        events.publish(AGED)  # each type has a limit of its own
        first = [json.loads(entry.data) for entry in one.take()]
        assert [event["type"] for event in first] == ["learned"] * 3 + ["broken", "aged"]
        entries = await one.next(SECONDS)
        assert entries is not None
        (rest,) = [json.loads(entry.data) for entry in entries]
        assert (rest["mac"][-2:], rest["suppressed"]) == ("13", 16)  # the last one, and how many before it
        events.publish(learned(0))
        assert json.loads(one.take()[0].data)["suppressed"] == 0
        await asyncio.sleep(0.1)
        assert not one.behind


async def test_what_nobody_made_counts_as_left_out_too() -> None:
    events = Events(rate=3, window=0.05)
    with events.subscribe() as one:
        events.publish(AGED)
        events.suppress(AGED, 1000)
        assert len(one.take()) == 1
        entries = await one.next(SECONDS)
        assert entries is not None
        assert [json.loads(entry.data)["suppressed"] for entry in entries] == [999]


async def test_memory_is_bounded() -> None:
    class Marked(BrokenEvent):
        pass

    events = Events(kept=8)
    with events.subscribe(), events.subscribe():
        marks = []
        for i in range(1000):
            event = Marked(port="vm1", bridge="br0", detail=str(i))
            marks.append(weakref.ref(event))
            events.publish(event)
        del event
        gc.collect()
        assert sum(mark() is not None for mark in marks) == 0
        assert len(events._ring) == 8


async def test_subscribers_are_bounded_and_places_are_given_back() -> None:
    events = Events(subscribers=2)
    with events.subscribe():
        with events.subscribe(), pytest.raises(TooManySubscribers):
            events.subscribe()
        with events.subscribe():
            assert events.subscribers == 2
    assert events.subscribers == 0


async def test_the_end_reaches_everybody() -> None:
    events = Events(rate=1, window=60)
    with events.subscribe() as one:
        waiting = asyncio.create_task(one.next(SECONDS))
        await asyncio.sleep(0)
        events.publish(learned(1))
        events.publish(learned(2))
        events.close()
        assert await waiting is None
        events.publish(broken("too late"))
        assert await one.next(SECONDS) is None


# ---- the stream ----


@dataclass
class Stream:
    """The client's side of one stream."""

    response: aiohttp.ClientResponse
    last_id: str | None = None

    async def block(self) -> dict[str, str]:
        """The fields of the next block; comments are left out; {} at the end."""
        fields: dict[str, str] = {}
        async with asyncio.timeout(SECONDS):
            while line := (await self.response.content.readline()).decode():
                if line.strip() == "" and fields:
                    break
                name, _, value = line.strip().partition(": ")
                if name:
                    fields[name] = value
        self.last_id = fields.get("id", self.last_id)
        return fields

    async def next(self) -> dict[str, Any]:
        """The data of the next event, after a look at the rest."""
        block = await self.block()
        while block and "data" not in block:
            block = await self.block()
        data: dict[str, Any] = json.loads(block["data"])
        assert block["event"] == data["type"]
        TypeAdapter(EventStream).validate_python(data)
        return data


@asynccontextmanager
async def streaming(switch: Switch, query: str = "", last_id: str | None = None) -> AsyncIterator[Stream]:
    headers = {} if last_id is None else {"Last-Event-ID": last_id}
    timeout = aiohttp.ClientTimeout(total=None)
    async with switch.session.get(f"http://switch{EVENTS}{query}", headers=headers, timeout=timeout) as response:
        assert (response.status, response.content_type) == (200, "text/event-stream")
        assert response.headers.getall("Server") == ["pvswitch"]
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        yield Stream(response)


async def test_a_change_of_the_configuration_is_an_event(switch: Switch) -> None:
    async with streaming(switch) as stream:
        await stream.block()
        await switch.ask("PATCH", f"{V1}/ports/vm1", json={"mtu": 9000})
        event = await stream.next()
    assert (event["revision"], event["etag"]) == (2, switch.controller.etag)
    changes = [{"op": "change", "pointer": "#/ports/vm1", "keys": ["mtu"], "disruptive": False}]
    assert (event["changes"], event["changes_omitted"]) == (changes, 0)
    last = switch.revisions.last()
    assert last is not None
    assert last.actor == event["actor"]


async def test_a_large_change_is_cut_short(switch: Switch) -> None:
    document = switch.controller.config.document()
    document["ports"] |= {f"p{i}": {"bridge": "br0", "labels": {"a": "x" * 1000}} for i in range(200)}
    async with streaming(switch) as stream:
        await stream.block()
        await switch.ask("PUT", f"{V1}/config", json=document, headers={"If-Match": "*"})
        event = await stream.next()
    assert (len(event["changes"]), event["changes_omitted"]) == (50, 150)
    assert len(json.dumps(event)) < 10_000


async def test_a_client_comes_back(switch: Switch) -> None:
    async with streaming(switch) as stream:
        first = (await stream.block())["id"]
        switch.events.publish(broken("a"))
        assert (await stream.next())["detail"] == "a"
    switch.events.publish(broken("b"))
    async with streaming(switch, last_id=stream.last_id) as stream:
        assert (await stream.next())["detail"] == "b"
    async with streaming(switch, last_id=first) as stream:
        assert [(await stream.next())["detail"] for _ in range(2)] == ["a", "b"]
    async with streaming(switch, last_id="0123-7") as stream:
        assert (await stream.next())["type"] == "reset"


async def test_what_is_remembered_and_then_the_end(switch: Switch) -> None:
    switch.events.publish(broken("a"))
    async with streaming(switch, "?follow=false&types=broken,link") as stream:
        assert (await stream.next())["detail"] == "a"
        assert await stream.block() == {}


async def test_types_are_filtered_and_wrong_ones_refused(switch: Switch) -> None:
    async with streaming(switch, "?types=config") as stream:
        await stream.block()
        switch.events.publish(broken("unwanted"))
        await switch.ask("DELETE", f"{V1}/ports/vm1")
        assert (await stream.next())["type"] == "config"
    for query in ("?types=", "?types=link,", "?types=other", "?follow=maybe", "?since=1"):
        assert (await switch.ask("GET", EVENTS + query)).status == 422, query


async def test_clients_that_go_give_their_place_back(switch: Switch) -> None:
    switch.events._max_subscribers = 2
    async with streaming(switch) as one, streaming(switch) as two:
        await one.block()
        await two.block()
        refused = await switch.ask("GET", EVENTS)
        assert (refused.status, refused.type) == (503, "application/problem+json")
    async with asyncio.timeout(SECONDS):
        while switch.events.subscribers:  # noqa: ASYNC110 (the bus has nothing to wait for)
            await asyncio.sleep(0.02)


async def test_a_client_that_takes_nothing_holds_nobody_up(switch: Switch) -> None:
    """Its stream stops at full buffers; others go on; it is told what it missed when it takes something again."""
    count = 3 * 4096
    async with streaming(switch) as slow, streaming(switch) as quick:
        await slow.block()
        await quick.block()
        seen = 0
        for i in range(count):
            switch.events.publish(broken(f"{i} " + "x" * 1000))
            if i % 500 == 499:
                async with asyncio.timeout(SECONDS):
                    while seen <= i:
                        event = await quick.next()
                        assert event["detail"].split()[0] == str(seen)
                        seen += 1
        assert len(switch.events._ring) == 4096
        before, event = -1, await slow.next()
        while event["type"] != "reset":
            before, event = int(event["detail"].split()[0]), await slow.next()
        after = await slow.next()
        assert int(after["detail"].split()[0]) == before + event["lost"] + 1


async def test_a_client_that_takes_nothing_for_long_is_cut_off(
    switch: Switch, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pvswitch.api.events.SEND_SECONDS", 0.2)
    async with streaming(switch) as stuck:
        await stuck.block()
        for i in range(4000):
            switch.events.publish(broken(f"{i} " + "x" * 1000))
        async with asyncio.timeout(SECONDS):
            while switch.events.subscribers:  # noqa: ASYNC110 (the bus has nothing to wait for)
                await asyncio.sleep(0.02)
    assert (await switch.ask("GET", "/healthz")).status == 200
    assert "request failed" not in capsys.readouterr().out


async def test_the_end_of_the_switch_ends_every_stream(switch: Switch) -> None:
    async with streaming(switch) as one, streaming(switch) as two:
        await one.block()
        await two.block()
        async with asyncio.timeout(SECONDS):
            closing = asyncio.create_task(switch.server.close())
            assert await one.block() == {}
            assert await two.block() == {}
            await closing
    assert switch.events.subscribers == 0


async def test_a_silent_stream_is_kept_alive(switch: Switch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pvswitch.api.events.KEEP_ALIVE_SECONDS", 0.05)
    async with streaming(switch) as stream:
        async with asyncio.timeout(SECONDS):
            while not (await stream.response.content.readline()).startswith(b":"):
                pass
