# SPDX-License-Identifier: Apache-2.0
"""Conversations to begin with; and asynchronous tests run twice: on asyncio's loop and on uvloop's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping

import pytest
import uvloop

from .fakes import Conversation, open_fds


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture
def talk() -> Iterator[Conversation]:
    """A conversation, after which every descriptor must be closed."""
    before = open_fds()
    conversation = Conversation()
    yield conversation
    conversation.session.close()
    assert open_fds() == before


@pytest.fixture
def running(talk: Conversation) -> Conversation:
    """Two running, enabled rings, and nothing noted of how they came about."""
    talk.run()
    talk.effects.clear()
    return talk
