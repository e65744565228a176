# SPDX-License-Identifier: Apache-2.0
"""The pages `/` and `/docs` in a real browser: what they show, and that they ask nobody but the switch."""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page, Route, async_playwright, expect

from pvswitch.guest import Guest
from pvswitch.process import SwitchProcess
from tests.conftest import RequirePeer
from tests.system.conftest import StartSwitch

PATIENCE = 20_000.0  # milliseconds
TOKEN = "t" * 64
CONFIG: dict[str, Any] = {"api": {"listen": "127.0.0.1:0"}, "ports": {"vm1": {}, "vm2": {"enabled": False}}}


@dataclass
class Browser:
    """A page, and all that it complained of or asked for."""

    page: Page
    base: str
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Nothing on the console, and no request to another host."""
        assert self.complaints == []
        assert self.requests
        assert [url for url in self.requests if not url.startswith((f"{self.base}/", "data:,"))] == []


@asynccontextmanager
async def browsing(program: str, switch: SwitchProcess) -> AsyncIterator[Browser]:
    match = re.search(r"listen=(127\.0\.0\.1:[1-9][0-9]*)", switch.log())
    assert match is not None, switch.log()
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        try:
            page = await chromium.new_page()
            page.set_default_timeout(PATIENCE)
            expect.set_options(timeout=PATIENCE)
            browser = Browser(page, f"http://{match[1]}")
            page.on("console", lambda message: browser.complaints.append(message.text))
            page.on("pageerror", lambda error: browser.complaints.append(str(error)))
            page.on("request", lambda request: browser.requests.append(request.url))
            yield browser
        finally:
            await chromium.close()


@pytest.fixture
def chromium(require_peer: RequirePeer) -> str:
    return require_peer("chromium", package="chromium")


async def test_the_page_of_the_switch(start_switch: StartSwitch, chromium: str) -> None:
    async with start_switch(CONFIG) as switch, Guest(switch.port_socket("vm1")), browsing(chromium, switch) as browser:
        page = browser.page
        await page.goto(browser.base)
        vm1, vm2 = page.locator("#ports tr", has_text="vm1"), page.locator("#ports tr", has_text="vm2")
        await expect(vm1.locator("td").nth(2)).to_have_text("up")
        await expect(vm1.locator("td").nth(4)).to_have_text("0")
        await expect(vm2).to_contain_text("admin_down")
        await expect(vm2.locator("span")).to_have_attribute("title", re.compile("pvswitch port set vm2 enabled=true"))
        await expect(page.locator("#workers tr")).to_have_count(1)
        await expect(page.locator("#totals")).to_contain_text("ports up")
        await switch.request("DELETE", "/api/v1/ports/vm2")
        await expect(page.locator("#ports tr")).to_have_count(1)
        browser.check()
        await page.get_by_role("link", name="API", exact=True).click()
        await expect(page.locator("#put_port")).to_have_count(1)


async def test_what_the_api_says_is_text(start_switch: StartSwitch, chromium: str) -> None:
    """Even from an API that lies: nothing that it says becomes an element or a script."""
    evil = "<img src=x onerror=\"document.title='owned'\">"
    port = {"name": evil, "bridge": evil, "state": {"link": "down", "reason": evil, "message": f'"{evil}'}}

    async def answer(route: Route) -> None:
        await route.fulfill(json={"items": [port], "next": None})

    async with start_switch(CONFIG) as switch, browsing(chromium, switch) as browser:
        page = browser.page
        await page.route("**/api/v1/ports?*", answer)
        await page.goto(browser.base)
        await expect(page.locator("#ports td").first).to_have_text(evil)
        assert await page.locator("img").count() == 0
        assert await page.title() == "pvswitch"
        browser.check()


async def test_the_page_of_the_api(start_switch: StartSwitch, chromium: str) -> None:
    async with start_switch(CONFIG) as switch, browsing(chromium, switch) as browser:
        page = browser.page
        await page.goto(f"{browser.base}/docs")
        await expect(page.locator("#resources h2").first).to_have_text("configuration")
        status, description = await switch.request("GET", "/openapi.json")
        assert status == 200
        operations = sum(len(item) for item in description["paths"].values())
        await expect(page.locator("#resources details")).to_have_count(operations)
        await expect(page.locator("#schemas details")).to_have_count(len(description["components"]["schemas"]))

        put = page.locator("#put_port")
        await put.locator("summary").click()
        await expect(put).to_contain_text("If-Match")
        await expect(put.locator("pre")).to_contain_text("9000")
        assert await put.get_by_role("button", name="Try it").count() == 0
        assert await page.locator("#stream_events").get_by_role("button", name="Try it").count() == 0

        get = page.locator("#get_port")
        await get.locator("summary").click()
        await get.locator("input[name=name]").fill("vm2")
        await get.get_by_role("button", name="Try it").click()
        await expect(get.locator("pre")).to_contain_text("200 OK")
        await expect(get.locator("pre")).to_contain_text('"reason": "admin_down"')

        await get.locator("a", has_text="Problem").first.click()
        await expect(page.locator("#schema-Problem")).to_have_attribute("open", "")
        browser.check()


@pytest.mark.parametrize("path", ["/", "/docs"])
async def test_a_token_is_asked_for(start_switch: StartSwitch, chromium: str, tmp_path: Path, path: str) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"people read {hashlib.sha256(TOKEN.encode()).hexdigest()}\n")
    tokens.chmod(0o600)
    config: Mapping[str, Any] = {**CONFIG, "api": {"listen": "127.0.0.1:0", "tokens_file": str(tokens)}}
    async with start_switch(config) as switch, browsing(chromium, switch) as browser:
        page = browser.page
        await page.goto(browser.base + path)
        await expect(page.locator("#trouble")).to_contain_text("a token is required here")
        await page.locator("#secret").fill(TOKEN)
        await page.get_by_role("button", name="Use it").click()
        await expect(page.locator("#token")).to_be_hidden()
        await expect(page.locator("#trouble")).to_be_hidden()
        await expect(page.locator("#version")).to_contain_text(".")
        browser.complaints = [line for line in browser.complaints if "401" not in line]
        browser.check()
