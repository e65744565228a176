# SPDX-License-Identifier: Apache-2.0
"""A pcap port: a capture file whose frames come into the switch, a file that gets those that leave it.

The files stand at the far end of a pair of sockets, whose near end is the port's only queue in the core: one thread
plays a capture into it, another one records from it (`file_pump.py`). The files are opened by `bind`, and touched from
`listen` on. The link is up as long as the queue runs: a capture that has come to its end, and a disk that is full, are
told in the port's message. A port with another file is another port; `speed` and `loop` begin the capture anew.

Used by `ports.py`, on the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable

import structlog

from pvswitch.datapath import Datapath, UplinkConf
from pvswitch.file_open import CaptureFiles, open_files
from pvswitch.file_pump import Player, Recorder, socket_pair
from pvswitch.model import AnyPort, PcapPort
from pvswitch.state import LinkReason, PortState, Queues, link_message
from pvswitch.switch_port import SwitchPort, UplinkQueues

log = structlog.get_logger(__name__)


class FilePort(UplinkQueues):
    """One pcap port."""

    def __init__(self, datapath: Datapath, name: str, port: PcapPort, *, on_link: Callable[[SwitchPort], None]) -> None:
        """Take a handle in the core (OSError ENOSPC)."""
        super().__init__(name, datapath.uplink(), on_link)
        self._port = port
        self._files = CaptureFiles()  # until the threads have them
        self._near: socket.socket | None = None  # the core's end
        self._far: socket.socket | None = None  # the threads'
        self._player: Player | None = None
        self._recorder: Recorder | None = None
        self._trouble = ""  # why the queue does not run

    # ---- life

    async def bind(self) -> None:
        """Open the files. Raises CaptureFileError, OSError."""
        self._files = await asyncio.to_thread(open_files, self._port.read, self._port.write)
        self._near, self._far = socket_pair()
        if self._port.write is None:
            self._far.shutdown(socket.SHUT_RD)  # what is sent to the port is refused, and doesn't pile up

    async def listen(self) -> None:
        """Let frames flow: what the switch sends has its writer, and the reader somebody who takes its frames."""
        port, files, far = self._port, self._files, self._far
        assert self._near is not None
        assert far is not None
        try:
            if port.write is not None and files.target is not None:
                self._recorder = Recorder(self.name, port.write, far, files.target)
                files.target = files.made = None
                self._recorder.start()
            await self.handle.start_queue(0, UplinkConf("file", self._near.fileno()))
            self._running = 1
            if port.read is not None and files.source is not None:
                self._player = Player(
                    self.name,
                    port.read,
                    far,
                    files.source,
                    speed=port.speed,
                    loop=port.loop,
                    paused=not self._port.enabled,  # as it is by now
                )
                files.source = None
                self._player.start()
        except (OSError, RuntimeError) as error:  # no descriptors, no memory, no thread
            self._trouble = f"port {self.name} could not begin: {error}; remove it and add it again"
            log.warning("file port not begun", port=self.name, error=str(error))
        self.refresh()

    def suits(self, port: AnyPort) -> bool:
        """Return whether these are the same files."""
        return isinstance(port, PcapPort) and (port.read, port.write) == (self._port.read, self._port.write)

    def configure(self, port: AnyPort) -> bool:
        """Take over a changed configuration."""
        assert isinstance(port, PcapPort)
        before, self._port = self._port, port
        if self._player is not None:
            self._player.pause(not port.enabled)
            if (port.speed, port.loop) != (before.speed, before.loop):
                self._player.restart(port.speed, port.loop)
        self.refresh()
        return False

    async def renew(self) -> None:
        """Nothing is left to be done."""

    async def close(self) -> None:
        """End the threads, and close all. What the core has sent by then is written."""
        player, self._player = self._player, None
        recorder, self._recorder = self._recorder, None
        try:
            if player is not None:
                await player.close()
            if self._running:
                self._running = 0
                with contextlib.suppress(OSError):
                    await self.handle.stop_queue(0)
            if recorder is not None:
                await recorder.close()
            await asyncio.to_thread(self._files.close)
        finally:
            for end in (self._near, self._far):
                if end is not None:
                    end.close()
            self._near = self._far = None
            self.handle.close()

    def tick(self) -> None:
        """Look at the link; all else is told by the threads."""
        self.refresh()

    # ---- what there is to see

    def link(self) -> tuple[LinkReason | None, str | None]:
        """Return why the link is down, None when it is up; and what there is to say of the files."""
        if not self._port.enabled:
            return LinkReason.ADMIN_DOWN, link_message(LinkReason.ADMIN_DOWN, self.name)
        if (broken := self.handle.broken()) is not None:
            return LinkReason.BROKEN, link_message(LinkReason.BROKEN, self.name, detail=broken)
        if not self._running:
            return LinkReason.INTERFACE_MISSING, self._trouble or f"port {self.name} has not begun yet: wait a moment"
        told = [pump.message for pump in (self._recorder, self._player) if pump is not None and pump.message]
        return None, "; ".join(told) or None

    def state(self) -> PortState:
        """Return what the API shows of this port."""
        reason, message = self.link()
        return PortState(
            link="up" if reason is None else "down",
            reason=reason,
            message=message,
            queues=Queues(offered=1, enabled=self._running),
            mtu=self._port.mtu,
        )

    def _queues(self) -> int:
        return 1
