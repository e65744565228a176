# SPDX-License-Identifier: Apache-2.0
"""A tap or af_packet port: its interface kept open as long as there is one, its queues in the core, its link state.

The link is up when the queues run and the interface is up with carrier. An interface may go at any time: then the
queues are stopped and the descriptors closed, and the link is down until it is back, which the namespace's `LinkWatch`
tells. A tap that goes with its descriptors (we made it) is made again by the next tick, for the configuration is the
truth; all others are waited for, and never removed.

One task for each port does all that takes time, one step after the other: nothing else opens or closes from `listen` to
`close`. Used by `ports.py`, on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

import structlog

from pvswitch.datapath import Datapath, UplinkConf
from pvswitch.model import MAX_PAIRS, AnyPort, TapPort
from pvswitch.netlink import Link, LinkWatch, Watches, run_in_namespace
from pvswitch.state import (
    LinkReason,
    PortState,
    Queues,
    link_message,
)
from pvswitch.switch_port import SwitchPort, UplinkQueues
from pvswitch.uplink import InterfaceMissing, Opened, Uplink, UplinkError, adjust, clean_up, follow, open_uplink, where

log = structlog.get_logger(__name__)


class UplinkPort(UplinkQueues):
    """One tap or af_packet port."""

    def __init__(
        self,
        datapath: Datapath,
        name: str,
        port: Uplink,
        *,
        mac: str,
        watches: Watches,
        on_link: Callable[[SwitchPort], None],
    ) -> None:
        """Take a handle in the core (OSError ENOSPC). `mac` is for a tap that has to be made."""
        super().__init__(name, datapath.uplink(MAX_PAIRS if isinstance(port, TapPort) else 1), on_link)
        self._port: Uplink = port
        self._mac = mac
        self._watches = watches
        self._watch: LinkWatch | None = None
        self._opened: Opened | None = None
        self._ours = isinstance(port, TapPort)  # to be made when it is missing
        self._trouble = ""  # why it could not be opened
        self._due = False  # the next look may try what failed before
        self._ending = False
        self._wake = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()

    # ---- life

    async def bind(self) -> None:
        """Open the interface. A missing one is waited for, but for a tap, which is made. Raises UplinkError."""
        try:
            await self._follow()
            self._take(await open_uplink(self._port, self._mac))
        except InterfaceMissing as error:
            if self._ours:
                raise
            self._trouble = str(error)

    async def listen(self) -> None:
        """Let frames flow, and keep it so."""
        async with self._turn:
            await self._start()
        self._keeper = asyncio.create_task(self._keep(), name=f"uplink {self.name}")
        self.refresh()

    def suits(self, port: AnyPort) -> bool:
        """Return whether it is the same interface, taken in the same way."""
        if not isinstance(port, Uplink):
            return False
        now = self._port
        return (port.type, port.ifname, port.netns) == (now.type, now.ifname, now.netns)

    def configure(self, port: AnyPort) -> bool:
        """Take over a changed configuration; `renew` carries it out."""
        assert isinstance(port, Uplink)
        before, self._port = self._port, port
        self.refresh()
        keys = {"queues", "addresses", "mtu", "promisc"} & type(port).model_fields.keys()
        return any(getattr(before, key) != getattr(port, key) for key in keys)

    async def renew(self) -> None:
        """Give the interface what is configured now. Other queues take a tap anew."""
        async with self._turn:
            if self._opened is None:
                return
            if len(self._opened.fds) != self._queues():
                await self._lose()
                await self._open()
            else:
                await self._adjust()

    async def close(self) -> None:
        """Close what is open: an interface that we made goes with it."""
        self._ending = True
        self._wake.set()
        if self._keeper is not None:
            await self._keeper
        try:
            await self._lose()
            await self._unfollow()
        finally:
            self.handle.close()

    # ---- the interface

    async def _keep(self) -> None:
        """Follow the interface until the port is closed."""
        while not self._ending:
            await self._wake.wait()
            self._wake.clear()
            async with self._turn:
                if not self._ending:
                    try:
                        await self._settle()
                    except Exception:  # the next tick tries again; without this task nobody would
                        log.exception("interface not looked after", port=self.name)
            self.refresh()

    async def _settle(self) -> None:
        """Let go of what is no longer there; open what is."""
        due, self._due = self._due, False
        if self._watch is not None and self._watch.gone:
            await self._lose()
            await self._unfollow()
        if self._opened is not None and not self._there():
            log.warning("interface lost", port=self.name, interface=where(self._port))
            await self._lose()
        if self._opened is None:
            if due or self._appeared():
                await self._open()
        elif due and self._trouble:
            await self._adjust()

    def _there(self) -> Link | None:
        """Return the interface that is open, as it is now, if it is still there under its name."""
        if self._opened is None or self._watch is None or self._watch.gone:
            return None
        link = self._watch.by_index(self._opened.link.index)
        return link if link is not None and link.name == self._port.ifname else None

    def _appeared(self) -> bool:
        """Return whether there is an interface that we wait for."""
        return not self._ours and self._watch is not None and self._watch.by_name(self._port.ifname) is not None

    async def _open(self) -> None:
        """Try to open and start it; what goes wrong is tried again by the next tick."""
        try:
            await self._follow()
            if not self._ours and not self._appeared():
                self._trouble = ""  # of then: by now it is just missing
                return
            self._take(await open_uplink(self._port, self._mac))
        except UplinkError as error:
            self._note(error)
            return
        await self._start()

    async def _adjust(self) -> None:
        """Give the open interface what is configured; what goes wrong is tried again by the next tick."""
        assert self._opened is not None
        try:
            if self._there():  # else its index may be that of another by now
                self._opened = await adjust(self._port, self._opened)
            self._trouble = ""
        except UplinkError as error:
            self._note(error)

    def _note(self, error: UplinkError) -> None:
        """Keep what went wrong, for the state; into the log it goes once."""
        if self._trouble != str(error):
            log.warning("interface not as configured", port=self.name, error=str(error))
        self._trouble = str(error)

    def _take(self, opened: Opened) -> None:
        self._opened, self._ours, self._trouble = opened, opened.made, ""
        assert self._watch is not None
        self._watch.put(opened.link)

    async def _start(self) -> None:
        """Start a queue on each descriptor."""
        if self._opened is None:
            return
        try:
            for index, fd in enumerate(self._opened.fds):
                await self.handle.start_queue(index, UplinkConf(self._opened.kind, fd, self._opened.uso))
                self._running = index + 1
        except OSError as error:
            self._note(UplinkError(f"queue {self._running} of {where(self._port)} was not started: {error.strerror}"))
            await self._lose()

    async def _lose(self) -> None:
        """Stop the queues and close the descriptors; a tap that stays is left as it was found."""
        running, self._running = self._running, 0
        for index in range(running):
            with suppress(OSError):
                await self.handle.stop_queue(index)
        if self._opened is not None and self._there():
            try:
                await clean_up(self._port, self._opened)
            except UplinkError as error:
                log.warning("interface not left as it was", port=self.name, error=str(error))
        opened, self._opened = self._opened, None
        if opened is not None:
            async with self._watches.closing:
                await run_in_namespace(None, opened.close)
        if not self._ending:
            self.refresh()

    async def _follow(self) -> None:
        """Follow the interfaces of the namespace."""
        if self._watch is None:
            self._watch = await follow(self._port, self._watches)
            self._watch.listen(self._port.ifname, self._noticed)

    async def _unfollow(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.unlisten(self._port.ifname, self._noticed)
            await self._watches.release(watch)

    def _noticed(self) -> None:
        """Look at the interface: it has changed, come or gone."""
        self._wake.set()

    def tick(self) -> None:
        """Try again what failed, and look whether the namespace is still the one that was opened."""
        if self._trouble or not self._there():
            self._due = True
            self._wake.set()
        self.refresh()

    # ---- what there is to see

    def link(self) -> tuple[LinkReason | None, str | None]:
        """Return why the link is down, None when it is up; and what to do, where there is something to do."""
        reason, detail = self._why_down()
        if reason is None:
            return None, self._trouble or None
        if reason is LinkReason.INTERFACE_MISSING and self._trouble:
            return reason, self._trouble
        return reason, link_message(reason, self.name, detail=detail, interface=where(self._port))

    def _why_down(self) -> tuple[LinkReason | None, str]:
        if not self._port.enabled:
            return LinkReason.ADMIN_DOWN, ""
        link = self._there()
        if link is None or not self._running:
            return LinkReason.INTERFACE_MISSING, ""
        if (broken := self.handle.broken()) is not None:
            return LinkReason.BROKEN, broken
        if not (link.up and link.carrier):
            return LinkReason.INTERFACE_DOWN, ""
        return None, ""

    def _queues(self) -> int:
        return self._port.queues if isinstance(self._port, TapPort) else 1

    def state(self) -> PortState:
        """Return what the API shows of this port."""
        reason, message = self.link()
        link = self._there()
        return PortState(
            link="up" if reason is None else "down",
            reason=reason,
            message=message,
            queues=Queues(offered=self._queues(), enabled=self._running),
            mtu=link.mtu if link is not None else self._port.mtu,
            ifindex=link.index if link is not None else None,
        )
