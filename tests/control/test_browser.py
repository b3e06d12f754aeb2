"""The console in a real browser: signed in to, read, used, refused; and fed with what wants to be markup.

Needs Playwright's Python package and a Chromium: its own (`playwright install chromium`) or the system's.
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from deia_hardening.plugin import Health, HealthState

pytestmark = pytest.mark.blocking

HOSTILE = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"


@asynccontextmanager
async def browsing(service: Any) -> AsyncIterator[Any]:
    """A page at the console of `service`, and what went wrong on it in `page.wrong`."""
    playwright = pytest.importorskip("playwright.async_api", reason="playwright is not installed")
    async with playwright.async_playwright() as engine:
        own = Path(engine.chromium.executable_path).exists()
        system = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        if not own and system is None:
            pytest.skip("no Chromium: run `playwright install chromium`, or install the system's package")
        browser = await engine.chromium.launch(executable_path=None if own else system, args=["--no-sandbox"])
        try:
            page = await browser.new_page()
            page.wrong = []
            page.on("pageerror", lambda error: page.wrong.append(str(error)))
            page.on("dialog", lambda dialog: dialog.accept())
            await page.goto(f"http://127.0.0.1:{service.port}/deia/")
            yield page
        finally:
            await browser.close()


async def sign_in(page: Any, token: str) -> None:
    await page.fill("input[type=password]", token)
    await page.click("button:has-text('Sign in')")
    await page.wait_for_selector("article")


def form(page: Any, operation: str) -> Any:
    return page.locator(f"section > details:has(> summary:has-text('{operation}'))").first


async def test_an_operator_signs_in_sees_the_state_and_changes_the_mode(whole: Any) -> None:
    async with browsing(whole) as page:
        await page.fill("input[type=password]", "deia_wrong")
        await page.click("button:has-text('Sign in')")
        await page.wait_for_selector("#told.problem:not(:empty)")
        await sign_in(page, await whole.token("operator"))
        cards = await page.locator("article h3").all_inner_texts()
        assert {"core", "audit", "config", "degradation", "migration", "recovery"} <= {each.lower() for each in cards}
        pin = form(page, "degradation.pin")
        await pin.locator("> summary").click()
        await pin.locator("select").select_option("DEGRADED")
        await pin.get_by_label("Reason").fill("a drill")
        await pin.locator("form > button").click()
        await pin.locator("output dl").first.wait_for()
        assert "DEGRADED" in await pin.locator("output").inner_text()
        card = page.locator("article:has(h3:has-text('degradation'))")
        await card.locator("p.state.degraded").wait_for()  # refreshed by itself
        await page.click("#leave")
        await page.wait_for_selector("input[type=password]")
        assert page.wrong == []


async def test_a_viewer_is_refused_and_told_why(whole: Any) -> None:
    async with browsing(whole) as page:
        await sign_in(page, await whole.token("viewer"))
        pin = form(page, "degradation.pin")
        await pin.locator("> summary").click()
        await pin.locator("select").select_option("MAINTENANCE")
        await pin.locator("form > button").click()
        await pin.locator("output.problem").wait_for()
        assert "operator" in await pin.locator("output").inner_text()
        assert (await whole.ask("GET", "/deia/degradation/mode")).json["mode"] == "FULL"
        assert page.wrong == []


async def test_what_a_service_says_stays_text(listening: Any, probe: Any) -> None:
    probe.state = Health(HealthState.DEGRADED, f"bot {HOSTILE} is gone", 1.0)
    async with browsing(listening) as page:
        await sign_in(page, await listening.token("admin"))
        write = form(page, "probe.write")
        await write.locator("> summary").click()
        await write.get_by_label("value").fill(HOSTILE[:100])
        await write.get_by_label("Reason").fill(HOSTILE)
        await write.locator("form > button").click()
        await write.locator("output dl").first.wait_for()
        assert HOSTILE in await write.locator("output").inner_text()
        assert HOSTILE in await page.locator("article p.detail").inner_text()
        assert await page.locator("img").count() == 0 and await page.title() == "deia_hardening console"


async def test_the_policy_lets_no_inline_script_and_no_stranger_in(listening: Any) -> None:
    async with browsing(listening) as page:
        tried = """async () => {
            const broken = [];
            document.addEventListener("securitypolicyviolation", (event) => broken.push(event.effectiveDirective));
            const script = document.createElement("script");
            script.textContent = "document.title = 'taken'";
            document.body.append(script);
            const image = document.createElement("img");
            image.src = "https://example.com/x.png";
            document.body.append(image);
            await fetch("https://example.com/").catch(() => null);
            await new Promise((resolve) => setTimeout(resolve, 200));
            return broken;
        }"""
        broken = await page.evaluate(tried)
        assert {"script-src-elem", "img-src", "connect-src"} <= set(broken)
        assert await page.title() == "deia_hardening console"
