"""The page at `/`, in a real browser, over the real REST service."""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect, sync_playwright

from caa.audit import Audit, Finding, Verdict
from caa.images.image import ImageState, PodVmImage
from caa.sandbox import AttemptState, Event, SandboxState
from caa.web.consoles import console_link
from providers.base import Market, Offering
from tests.lab.ports import held_port
from tests.ledger import samples
from tests.wire.rest_service import Service, sandbox_body, serving, settings_in

TOKEN = "a-token-that-only-this-test-knows"
OPERATOR = "another-token-that-operators-know"
MANY = 1000
# The machine may be busy with other tests; so many tell what the page needs.
LOADS = 9
# A browser has many processes, and each waits for its turn there.
PATIENCE_MS = 90_000.0
ARGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# Names the file that the picture in the documentation is written to.
PICTURE = "CAA_PAGE_PICTURE"
PODS = ("shop/web", "shop/cart", "billing/invoices", "ml/train", "ml/serve", "ops/backup")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service over TCP, with a token."""
    directory = tmp_path_factory.mktemp("page")
    keys = {"CAA_API_LISTEN": f"127.0.0.1:{held_port()}"}
    for key, token in (("CAA_API_TOKEN_FILE", TOKEN), ("CAA_OPERATOR_TOKEN_FILE", OPERATOR)):
        file = directory / key
        file.write_text(token)
        file.chmod(0o600)
        keys[key] = str(file)
    with serving(settings_in(directory, **keys)) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium of the distribution."""
    expect.set_options(PATIENCE_MS)
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=ARGS, timeout=PATIENCE_MS)
        yield found
        found.close()


def opened(browser: Browser, url: str, **how: Any) -> BrowserContext:
    """A new profile."""
    context = browser.new_context(base_url=url, **how)
    context.set_default_timeout(PATIENCE_MS)
    return context


@pytest.fixture
def page(browser: Browser, service: Service) -> Iterator[Page]:
    """A tab that is logged in. No test may leave an error on its console."""
    context = opened(browser, service.tcp_url, viewport={"width": 1360, "height": 760})
    tab = context.new_page()
    said: list[str] = []

    def hear(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            said.append(message.text)

    answer = context.request.post("/login", form={"token": TOKEN})
    assert answer.ok, answer.text()
    tab.on("console", hear)
    tab.on("pageerror", lambda error: said.append(str(error)))
    yield tab
    context.close()
    assert said == []


@pytest.fixture
def operator(page: Page) -> Page:
    """The same tab, of an operator."""
    answer = page.request.post("/login", form={"token": OPERATOR})
    assert answer.ok, answer.text()
    return page


@pytest.fixture
def changing(service: Service) -> Iterator[Service]:
    """For tests that change what an audit finds and which images there are."""
    before = service.audit
    yield service
    service.audit, service.images.shown = before, []


def image(state: ImageState, **more: Any) -> PodVmImage:
    now = datetime.now(UTC)
    return PodVmImage("image-1", "prod", "aws/eu-west-1", "recipe", state, now, now, **more)


def add(service: Service, number: int) -> str:
    """A sandbox of some age in some state, with an instance."""
    sandbox_id = f"{number:04x}" * 16
    at = datetime.now(UTC) - timedelta(minutes=number + 2)
    namespace, name = PODS[number % len(PODS)].split("/")
    state = SandboxState.FAILED if number % 7 == 5 else SandboxState.RUNNING
    failure = (
        ("InsufficientInstanceCapacity", "no zone has capacity left") if state is SandboxState.FAILED else ("", "")
    )
    found = service.ledger.add_sandbox(
        samples.sandbox(
            sandbox_id,
            node="worker-1",
            pod_namespace=namespace,
            pod_name=f"{name}-{number}",
            state=SandboxState.STARTING,
            created_at=at,
            changed_at=at,
        )
    )
    market = Market.SPOT if number % 3 == 0 else Market.ON_DEMAND
    attempt = samples.attempt(
        sandbox_id, offering=Offering("m6a.large", f"eu-west-1{'abc'[number % 3]}", 2, 8192, market), created_at=at
    )
    added = service.ledger.add_attempt(attempt, sandbox_version=found.version)
    service.ledger.save_attempt(
        replace(added, state=AttemptState.ACCEPTED, instance_id=f"i-{number:017x}", addresses=("10.0.0.7",))
    )
    current = service.ledger.sandbox(sandbox_id)
    assert current is not None
    if state is SandboxState.FAILED:
        current = service.ledger.save_sandbox(replace(current, state=SandboxState.STOPPING))
    service.ledger.save_sandbox(
        replace(current, state=state, changed_at=at, failure_reason=failure[0], failure=failure[1])
    )
    return sandbox_id


def trail(service: Service, sandbox_id: str) -> None:
    """The events of a start that a full zone held up."""
    begun = datetime.now(UTC) - timedelta(minutes=2)
    steps: tuple[tuple[float, str, str, dict[str, str | int | float | bool]], ...] = (
        (0.0, "StartRequested", "the shim asks for the VM", {}),
        (0.4, "LaunchIntended", "m6a.large in eu-west-1b, spot", {}),
        (2.1, "LaunchRefused", "the zone is full", {"outcome": "refused"}),
        (2.2, "LaunchIntended", "m6a.large in eu-west-1a, spot", {}),
        (3.6, "LaunchAccepted", "the cloud accepted", {}),
        (5.0, "AddressKnown", "10.0.0.7", {}),
        (31.0, "Running", "the agent answered", {"port_open_seconds": 22.0, "agent_seconds": 26.0, "state": "running"}),
    )
    for seconds, kind, message, data in steps:
        at = begun + timedelta(seconds=seconds)
        service.ledger.add_event(Event(sandbox_id, at, kind, message, data=data, node="worker-1"))


@pytest.fixture(scope="module")
def few(service: Service) -> str:
    """Some sandboxes; the id of one with a timeline."""
    ids = [add(service, number) for number in range(14)]
    trail(service, ids[0])
    return ids[0]


def test_a_browser_without_the_token_gets_the_login_form_and_with_it_the_page(
    browser: Browser, service: Service, few: str
) -> None:
    context = opened(browser, service.tcp_url)
    tab = context.new_page()
    tab.goto("/")
    expect(tab.get_by_role("heading", name="Log in")).to_be_visible()
    assert few not in tab.content()
    assert serious(tab) == []
    tab.get_by_label("Token").fill("not the token")
    tab.keyboard.press("Enter")
    expect(tab.get_by_role("alert")).to_contain_text("not the token")
    tab.get_by_label("Token").fill(TOKEN)
    tab.keyboard.press("Enter")
    expect(tab.get_by_role("table")).to_be_visible()
    (cookie,) = context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
    assert TOKEN not in cookie["value"]
    context.close()


def test_the_cookie_opens_the_page_and_no_route_of_the_rest_interface(service: Service) -> None:
    with httpx.Client(base_url=service.tcp_url, trust_env=False, timeout=PATIENCE_MS / 1000) as client:
        assert client.get("/events").status_code == 401
        assert client.get("/sandboxes/x").status_code == 401
        assert client.post("/login", data={"token": TOKEN}).status_code == 303
        assert "default-src 'none'" in client.get("/").headers["content-security-policy"]
        assert client.get("/v1/sandboxes").status_code == 401
        assert client.post("/v1/sandboxes/x/stop").status_code == 401
        assert client.get("/", headers={b"Cookie": b"caa_page=\xe9"}).status_code == 401


def test_the_unix_socket_needs_no_token(service: Service) -> None:
    with service.client() as client:
        assert "Sandboxes and their VMs" in client.get("/").text


def test_a_start_appears_without_reload(page: Page, service: Service, few: str) -> None:
    page.goto("/")
    expect(page.locator("#status")).to_contain_text("12 running")
    expect(page.locator("#live")).to_have_text("Live")
    page.evaluate("window.sameDocument = true")
    page.locator(f"#sandbox-{few} a").first.focus()
    with service.client() as client:
        client.post("/v1/sandboxes", json=sandbox_body("fresh", "shop/fresh")).raise_for_status()
        expect(page.locator("#sandbox-fresh .state")).to_have_text("created")
        client.post("/v1/sandboxes/fresh/start").raise_for_status()
    expect(page.locator("#sandbox-fresh .state")).to_have_text("running")
    expect(page.locator("#status")).to_contain_text("13 running")
    assert page.evaluate("window.sameDocument")
    assert page.evaluate("document.activeElement.closest('tr').id") == f"sandbox-{few}"


def test_search_and_state_filter_the_table_and_stay_in_the_address(page: Page, few: str) -> None:
    page.goto("/")
    page.get_by_label("Search").fill("billing eu-west-1c")
    expect(page.locator("tbody tr:visible")).to_have_count(2)
    page.get_by_label("State").select_option("failed")
    expect(page.locator("#shown")).to_have_text("0 shown")
    page.get_by_label("Search").fill("")
    expect(page.locator("tbody tr:visible")).to_have_count(2)
    page.reload()
    expect(page.locator("tbody tr:visible")).to_have_count(2)


def test_a_timeline_shows_each_phase_as_a_bar(page: Page, few: str) -> None:
    page.goto(f"/sandboxes/{few}")
    rows = page.locator(".timeline tbody tr")
    names = [text.split()[0] for text in rows.locator("th").all_inner_texts()]
    assert names == ["choose", "launch", "choose", "launch", "address", "boot", "agent"]
    widths = [
        int(width or 0)
        for width in rows.locator(".fill").evaluate_all("all => all.map(one => one.getAttribute('width'))")
    ]
    assert max(widths) == widths[5]  # boot
    expect(rows.nth(5)).to_contain_text("22.00 s")
    expect(rows.nth(1)).to_contain_text("LaunchRefused")


def test_the_keyboard_reaches_everything_in_the_order_of_reading(page: Page, few: str) -> None:
    page.goto("/")
    seen = []
    for _ in range(7):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("(document.activeElement.id || document.activeElement.textContent).trim()"))
    assert seen[0] == "Skip to the content"
    assert seen[2:4] == ["q", "state"]
    page.locator(f"#sandbox-{few} a").first.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="shop/web-0")).to_be_visible()


def test_an_images_build_is_shown_with_its_progress_and_its_failure(page: Page, changing: Service) -> None:
    page.goto("/")
    expect(page.locator("#status")).to_contain_text("nothing is being built")
    changing.images.shown = [image(ImageState.BUILDING, phase="upload", done=63, total=100)]
    expect(page.locator("#status")).to_contain_text("building: upload 63 %")
    bar = page.get_by_role("progressbar", name="Image build, upload")
    assert bar.get_attribute("value") == "63"
    changing.images.shown = [image(ImageState.FAILED, phase="upload", failure="no space is left")]
    expect(page.locator("#status")).to_contain_text("no space is left")
    expect(page.get_by_text("Build it again")).to_have_count(0)


def test_what_an_audit_found_and_a_node_that_is_not_ready_are_shown(page: Page, changing: Service) -> None:
    page.goto("/")
    expect(page.locator("#status")).to_contain_text("ledger and cloud agree")
    orphan = Finding(Verdict.ORPHAN, "i-0abc belongs to no sandbox", "i-0abc", "podvm-x", "", "", "")
    changing.audit = Audit(datetime.now(UTC), (orphan,))
    page.get_by_text("1 difference").click()
    expect(page.locator("#status")).to_contain_text("orphan: i-0abc belongs to no sandbox")
    changing.health.unready = ["the first reconcile round"]
    try:
        expect(page.locator("#status")).to_contain_text("not ready")
        # What was open stays open.
        expect(page.get_by_text("orphan: i-0abc belongs to no sandbox")).to_be_visible()
    finally:
        changing.health.unready = []


def test_a_reader_can_change_nothing(page: Page, service: Service, few: str) -> None:
    page.goto(f"/sandboxes/{few}")
    expect(page.get_by_text("Stop …")).to_have_count(0)
    for path in (f"/sandboxes/{few}/stop", "/audit/fix", "/image/retry"):
        for proof in ("", "0" * 64):
            assert page.request.post(path, form={"proof": proof}).status == 401
            with service.client() as client:  # root's own socket has no forms either
                assert client.post(path, data={"proof": proof}).status_code == 403


def test_an_operator_stops_a_sandbox_after_a_second_look(operator: Page, service: Service, few: str) -> None:
    with service.client() as client:
        client.post("/v1/sandboxes", json=sandbox_body("unwanted", "shop/unwanted")).raise_for_status()
        client.post("/v1/sandboxes/unwanted/start").raise_for_status()
    operator.goto("/sandboxes/unwanted")
    button = operator.get_by_role("button", name="Stop shop/unwanted and end its VM")
    expect(button).to_be_hidden()
    operator.get_by_text("Stop …").press("Enter")
    assert serious(operator) == []
    button.press("Enter")
    expect(operator.locator(".state")).to_have_text("stopping")
    expect(operator.get_by_text("Stop …")).to_have_count(0)


def in_need_of_an_operator(service: Service) -> None:
    """An image that failed, and an orphan."""
    service.images.shown = [image(ImageState.FAILED, failure="no space is left")]
    orphan = Finding(Verdict.ORPHAN, "i-0abc belongs to no sandbox", "i-0abc", "podvm-x", "", "", "")
    service.audit = Audit(datetime.now(UTC), (orphan,))


def test_an_operator_puts_right_what_an_audit_found_and_has_an_image_built_again(
    operator: Page, changing: Service
) -> None:
    in_need_of_an_operator(changing)
    operator.goto("/")
    operator.get_by_text("Build it again …").click()
    with operator.expect_navigation():
        operator.get_by_role("button", name="Build the image again").click()
    assert changing.images.retried == 1
    operator.get_by_text("1 difference").click()
    with operator.expect_navigation():
        operator.get_by_role("button", name="End orphans").click()
    assert changing.fixed == 1


def test_what_an_operator_is_about_to_press_stays_open_and_has_the_focus_while_there_are_news(
    operator: Page, changing: Service
) -> None:
    in_need_of_an_operator(changing)
    operator.goto("/")
    operator.get_by_text("1 difference").click()
    button = operator.get_by_role("button", name="End orphans")
    button.focus()
    changing.images.shown = [image(ImageState.FAILED, failure="no right")]
    expect(operator.locator("#status")).to_contain_text("no right")
    expect(button).to_be_focused()
    expect(operator.get_by_role("button", name="Build the image again")).to_be_hidden()


def test_another_sites_form_does_nothing_even_with_an_operators_cookie(operator: Page, service: Service) -> None:
    before = service.fixed
    for proof in ("", "0" * 64, "x" * 1000, "é"):
        assert operator.request.post("/audit/fix", form={"proof": proof}).status == 403
    assert service.fixed == before
    assert OPERATOR not in operator.content()


def test_the_page_goes_on_by_itself_when_the_service_is_back(browser: Browser, tmp_path: Path) -> None:
    keys = {"CAA_API_LISTEN": f"127.0.0.1:{held_port()}", "CAA_API_TOKEN_FILE": str(tmp_path / "token")}
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "token").chmod(0o600)
    settings = settings_in(tmp_path, **keys)
    context = opened(browser, f"http://{keys['CAA_API_LISTEN']}")
    tab = context.new_page()
    with serving(settings):
        assert context.request.post("/login", form={"token": TOKEN}).ok
        tab.goto("/")
        expect(tab.locator("#live")).to_have_text("Live")
        tab.evaluate("window.sameDocument = true")
    expect(tab.locator("#live")).to_contain_text("trying again")
    with serving(settings) as back:
        # Something happened before the page was connected again: it is told all the same.
        add(back, 1)
        back.ledger.add_event(Event(f"{1:04x}" * 16, datetime.now(UTC), "Running", "x", node="worker-1"))
        expect(tab.locator(f"#sandbox-{1:04x}" + f"{1:04x}" * 15)).to_be_visible()
        expect(tab.locator("#live")).to_have_text("Live")
        assert tab.evaluate("window.sameDocument")
    context.close()


def test_the_page_goes_on_by_itself_after_a_proxy_answered_for_the_service(browser: Browser, service: Service) -> None:
    context = opened(browser, service.tcp_url)
    assert context.request.post("/login", form={"token": TOKEN}).ok
    tab = context.new_page()
    tab.route("**/events*", lambda route: route.fulfill(status=502, body="bad gateway"))
    tab.goto("/")
    expect(tab.locator("#live")).to_contain_text("trying again")
    tab.unroute("**/events*")
    expect(tab.locator("#live")).to_have_text("Live")
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("where", ["table", "timeline"])
def test_axe_finds_nothing_serious(page: Page, few: str, scheme: str, where: str) -> None:
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    page.goto(f"/sandboxes/{few}" if where == "timeline" else "/")
    assert serious(page) == []


def serious(page: Page) -> list[object]:
    """What axe-core says of the page."""
    found = Axe().run(page).response["violations"]
    return [one for one in found if one["impact"] in ("serious", "critical")]


def test_the_picture_of_the_documentation(page: Page, few: str) -> None:
    page.emulate_media(color_scheme="dark")
    page.goto("/")
    expect(page.locator("#live")).to_have_text("Live")
    picture = os.environ.get(PICTURE)
    shot = page.screenshot()
    if picture:
        Path(picture).write_bytes(shot)
        page.goto(f"/sandboxes/{few}")
        Path(picture).with_name("timeline.png").write_bytes(page.screenshot())


def on_the_cores() -> tuple[float, float]:
    """Seconds that this process's threads ran, and seconds that they could have run and others did. The kernel's."""
    ran = waited = 0
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended
            one = (thread / "schedstat").read_text().split()
            ran, waited = ran + int(one[0]), waited + int(one[1])
    return ran / 1e9, waited / 1e9


def test_a_thousand_sandboxes_are_there_within_a_second(page: Page, service: Service, few: str) -> None:
    for number in range(14, MANY):
        add(service, number)
    took: list[float] = []
    alone: list[float] = []
    while len(took) < LOADS and min(took, default=2.0) > 1.0:
        ran, waited = on_the_cores()
        begun = time.monotonic()
        page.goto("/", wait_until="load")
        took.append(time.monotonic() - begun)
        now_ran, now_waited = on_the_cores()
        # The service is in this process, and the browser waits for the same cores.
        crowding = 1 + max(0.0, now_waited - waited) / max(now_ran - ran, 0.01)
        alone.append(took[-1] / crowding)
        assert page.locator("tbody tr").count() >= MANY
    print(f"loads of {MANY} sandboxes took {took} s, on a machine that does nothing else about {alone} s")
    assert min(took) <= 1.0 or statistics.median(alone) <= 1.0


def test_each_cloud_has_its_link_into_the_console() -> None:
    assert console_link("aws", "eu-west-1a", "i-1") == (
        "https://eu-west-1.console.aws.amazon.com/ec2/home?region=eu-west-1#InstanceDetails:instanceId=i-1"
    )
    vm = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/virtualMachines/v"
    assert console_link("azure", "1", vm) == f"https://portal.azure.com/#resource{vm}"
    assert console_link("ibmcloud", "eu-de-1", "02c7_x").endswith("/eu-de~02c7_x/overview")
    assert console_link("libvirt", "", "podvm-web") == console_link("aws", "", "i-1") == ""
