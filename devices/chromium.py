"""Starts a headless Chromium on a fresh profile, drives it through Playwright, and always ends it.

The browser is started here rather than by Playwright so that one that hangs can be ended: nothing
can be requested from a page whose only thread is stuck in WebAssembly. Playwright is driven from a
thread of its own, so that it also works where an event loop runs already, as in a notebook.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ..runtimes.managed import Managed
from .base import DeviceError, DeviceOptions
from .server import PageServer
from .setup.web_packages import PACKAGES, find_browser

_Result = TypeVar("_Result")
_START_S = 60.0
_ARGUMENTS = (
    "--headless=new",
    "--remote-debugging-port=0",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-breakpad",
    "--disable-dev-shm-usage",  # containers have a /dev/shm too small for tensors
    "--mute-audio",
)
_FOLDERS = ("TMPDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME")
# The browser listens on a socket in its temporary folder; its path is limited to 107 bytes
# (unix(7)).
_LONGEST_FOLDER = 107 - len("/org.chromium.Chromium.scoped_dir.XXXXXX/SingletonSocket")
_PREFIX, _SHORT = "renormlite-", "c-"


class Browser(Managed):
    """A running browser; a context manager.

    Args:
        options: Which browser, and how long one artifact may take.

    Attributes:
        server: The server of its pages.
        version: Name and version, set on entering.

    Raises:
        DeviceError: On entering: a component is missing, or the browser does not start.
    """

    def __init__(self, options: DeviceOptions) -> None:
        self.options = options
        self.server = PageServer(Path(__file__).with_name("web"), PACKAGES.path / "packages")
        self.version = ""
        self._resources = contextlib.ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: concurrent.futures.ThreadPoolExecutor | None = None
        self._cdp: Any = None
        self._browser: Any = None

    def _open(self) -> None:
        program = require_browser(self.options)
        self._resources.enter_context(self.server)
        endpoint = self._start(program)
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "renormlite-browser")
        self.ask(lambda: self._connect(endpoint), limit_s=_START_S)

    def _close(self) -> None:
        """End the browser and remove its profile."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
        if self._thread is not None:
            # The browser has ended, so whatever the thread waited for has failed.
            self._thread.submit(self._stop_playwright)
            self._thread.shutdown(wait=True)
            self._thread = None
        self._resources.close()

    @property
    def running(self) -> bool:
        """Whether the browser answers: it has been entered and has not hung."""
        return self._thread is not None

    def ask(self, question: Callable[[], _Result], *, limit_s: float | None = None) -> _Result:
        """Call a function in the browser's thread.

        Args:
            question: The function.
            limit_s: Its time limit in seconds; None for the limit of one artifact.

        Raises:
            DeviceError: The browser hung, and has been ended.
        """
        if self._thread is None:
            raise DeviceError("The browser has been ended after it hung.")
        future = self._thread.submit(question)
        limit = self.options.timeout_s if limit_s is None else limit_s
        try:
            return future.result(limit)
        except concurrent.futures.TimeoutError as error:
            self._close()
            raise DeviceError(
                f"The browser gave no answer within {limit:g} s and was ended; "
                "--device-timeout allows more."
            ) from error

    def new_page(self) -> Any:
        """Return a page in its own context, and therefore its own process. Call inside `ask`."""
        context = self._browser.new_context()
        page = context.new_page()
        # Everything a page needs is on loopback; requests to other hosts are blocked.
        page.route(lambda url: not url.startswith(self.server.url), lambda route: route.abort())
        return page

    def peak_memory_bytes(self) -> int | None:
        """Return the largest resident size of a page's process; None if it cannot be read.

        Call inside `ask`.
        """
        processes = self._cdp.send("SystemInfo.getProcessInfo")["processInfo"]
        peaks = []
        for process in processes:
            status = Path(f"/proc/{process['id']}/status")
            if process["type"] == "renderer" and status.is_file():
                found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
                peaks.append(int(found.group(1)) * 1024 if found else 0)
        return max(peaks, default=None)

    def _start(self, program: Path) -> str:
        """Start the browser and return the address at which Playwright connects to it."""
        profile = _make_folder()
        self._resources.callback(shutil.rmtree, profile, ignore_errors=True)
        # The sandbox does not work for root, and only our own pages are opened.
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        log = self._resources.enter_context((profile / "log.txt").open("wb"))
        self._process = subprocess.Popen(
            [str(program), *_ARGUMENTS, *sandbox, f"--user-data-dir={profile}", "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # Files that the browser stores outside its profile are redirected into it, so that
            # they are removed.
            env={**os.environ, **dict.fromkeys(_FOLDERS, str(profile))},
            start_new_session=True,
        )
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            said = (profile / "log.txt").read_text(errors="replace")
            found = re.search(r"DevTools listening on (ws://\S+)", said)
            if found:
                return found.group(1)
            if self._process.poll() is not None:
                lines = [line for line in said.splitlines() if line.strip()] or ["no message"]
                raise DeviceError(f"The browser {program} does not start: {lines[-1].strip()}")
            time.sleep(0.05)
        raise DeviceError(f"The browser {program} did not start within {_START_S:g} s.")

    def _connect(self, endpoint: str) -> None:
        from playwright.sync_api import sync_playwright

        self._playwright = sync_playwright().start()
        self._browser = self._playwright.chromium.connect_over_cdp(endpoint)
        self._cdp = self._browser.new_browser_cdp_session()
        self.version = self._cdp.send("Browser.getVersion")["product"]

    def _stop_playwright(self) -> None:
        if self._browser is not None:
            self._browser.close()  # which removes its own temporary folder
            self._playwright.stop()


def _make_folder() -> Path:
    """Create the folder for everything the browser writes, with a path short enough for its socket.

    Raises:
        DeviceError: No temporary folder is.
    """
    own = tempfile.gettempdir()
    # A command's own folder has a long path, and is removed with all that it contains.
    for base, prefix in ((own, _PREFIX), (own, _SHORT), ("/tmp", _PREFIX), ("/var/tmp", _PREFIX)):
        fits = len(os.fsencode(base)) <= _LONGEST_FOLDER - len(f"/{prefix}XXXXXXXX")
        if fits and os.access(base, os.W_OK):
            return Path(tempfile.mkdtemp(prefix=prefix, dir=base))
    longest = _LONGEST_FOLDER - len(f"/{_SHORT}XXXXXXXX")
    raise DeviceError(
        f"The browser needs a temporary folder whose path has at most {longest} characters: set "
        f"TMPDIR to one. Received: '{own}'."
    )


def require_browser(options: DeviceOptions) -> Path:
    """Return the browser after checking that everything it needs is installed.

    Raises:
        DeviceError: A component is missing; the message names the command that installs it.
    """
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError as error:
        raise DeviceError(
            "The device 'browser' is driven by Playwright. "
            "Install it: pip install 'renormlite[browser]'"
        ) from error
    if PACKAGES.record() is None:
        raise DeviceError(
            "The web runtimes are not set up on this machine. Run: renormlite device setup browser"
        )
    program = find_browser(options.browser)
    if program is None:
        raise DeviceError(
            "No Chromium or Chrome is on the PATH: name yours with --browser PATH, or install one: "
            "sudo apt install chromium"
        )
    return program
