"""A fake adb server: speaks adb's wire protocol with the real adb client.

Run as `python fake_adb_server.py PORT FOLDER`. The device is FOLDER/root: its shell is /bin/sh with
TMPDIR in there. FOLDER/devices.json maps serial number to state and can be rewritten at any time;
"unplugged" cuts every connection to it. FOLDER/full lets each upload fail for lack of space.

Protocol, from AOSP's packages/modules/adb (OVERVIEW.TXT, SERVICES.TXT, SYNC.TXT, shell_protocol.h):
a request is four hexadecimal digits of length and a service name; the answer OKAY or FAIL. After
`host:transport:SERIAL` the connection is to the device: `shell,v2,…:COMMAND` in packets of one
byte kind, four bytes length, data; `sync:` in requests of four letters and four bytes length.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import socketserver
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

VERSION = 41  # of adb 1.0.41: the client restarts a server of another version
FEATURES = "shell_v2,cmd"
STDIN, STDOUT, STDERR, EXIT, CLOSE_STDIN = range(5)


class GoneError(ConnectionError):
    """The client went away, or the device was unplugged."""


class Session(socketserver.BaseRequestHandler):
    server: FakeServer
    request: socket.socket

    def handle(self) -> None:
        try:
            while self.serve_one():
                pass
        except (ConnectionError, OSError):
            return

    def serve_one(self) -> bool:
        """Answer one host request; False when the connection is done."""
        service = self.read(int(self.read(4), 16)).decode()
        if service == "host:version":
            self.okay(f"{VERSION:04x}")
            return False
        if service in ("host:devices", "host:devices-l"):
            rows = [f"{serial}\t{state}\n" for serial, state in self.server.devices().items()]
            self.okay("".join(row for row in rows if "unplugged" not in row))
            return False
        if service in ("host:host-features", "host:features"):
            self.okay(FEATURES)
            return False
        if service.startswith("host-serial:") and service.endswith(":features"):
            if self.checked(service.split(":")[1]):
                self.okay(FEATURES)
            return False
        for prefix, transport_id in (("host:tport:serial:", True), ("host:transport:", False)):
            if service.startswith(prefix):
                if not self.checked(service[len(prefix) :]):
                    return False
                self.request.sendall(b"OKAY" + (struct.pack("<Q", 1) if transport_id else b""))
                self.serve_device()
                return False
        self.fail(f"unknown host service '{service}'")
        return False

    def checked(self, serial: str) -> bool:
        state = self.server.devices().get(serial, "unplugged")
        if state == "device":
            return True
        unknown = state == "unplugged"
        self.fail(f"device '{serial}' not found" if unknown else f"device {state}")
        return False

    def serve_device(self) -> None:
        self.server.to_devices.append(self.request)
        service = self.read(int(self.read(4), 16)).decode()
        kind, _, rest = service.partition(":")
        if kind.startswith("shell,v2"):
            self.request.sendall(b"OKAY")
            self.shell(rest)
        elif kind == "sync":
            self.request.sendall(b"OKAY")
            self.sync()
        else:
            self.fail(f"unknown device service '{service}'")

    # shell,v2 ---------------------------------------------------------------------------------

    def shell(self, command: str) -> None:
        process = subprocess.Popen(
            ["/bin/sh", "-c", command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self.server.root,
            env=self.server.environment(),
            start_new_session=True,
        )
        self.server.running.add(process)
        feeder = threading.Thread(target=self.feed, args=(process,), daemon=True)
        feeder.start()
        lock = threading.Lock()
        pumps = [
            threading.Thread(target=self.pump, args=(stream, kind, lock), daemon=True)
            for stream, kind in ((process.stdout, STDOUT), (process.stderr, STDERR))
        ]
        for pump in pumps:
            pump.start()
        code = process.wait()
        for pump in pumps:
            pump.join(0.5)  # a background process of the command keeps the pipes open
        self.server.running.discard(process)
        with lock:
            self.packet(EXIT, bytes([code & 0xFF]))

    def feed(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        try:
            while True:
                kind, size = struct.unpack("<BI", self.read(5))
                data = self.read(size)
                if kind == STDIN:
                    process.stdin.write(data)
                    process.stdin.flush()
                elif kind == CLOSE_STDIN:
                    process.stdin.close()
        except (ConnectionError, OSError, ValueError):
            if (
                process.poll() is None
            ):  # adbd sends SIGHUP to processes that a client leaves running
                os.killpg(process.pid, signal.SIGHUP)

    def pump(self, stream: object, kind: int, lock: threading.Lock) -> None:
        while data := os.read(stream.fileno(), 16384):  # type: ignore[attr-defined]
            try:
                with lock:
                    self.packet(kind, data)
            except OSError:
                return

    def packet(self, kind: int, data: bytes) -> None:
        self.request.sendall(struct.pack("<BI", kind, len(data)) + data)

    # sync -------------------------------------------------------------------------------------

    def sync(self) -> None:
        while True:
            name, size = self.read(4), struct.unpack("<I", self.read(4))[0]
            if name == b"QUIT":
                return
            path = self.read(size).decode()
            if name == b"STAT":
                self.stat(path)
            elif name == b"SEND":
                self.receive(path.rpartition(",")[0])
            elif name == b"RECV":
                self.send(path)
            else:
                self.refuse(f"unknown sync request {name!r}")
                return

    def stat(self, path: str) -> None:
        try:
            found = os.stat(path)
            fields = (found.st_mode, found.st_size, int(found.st_mtime))
        except OSError:
            fields = (0, 0, 0)
        self.request.sendall(b"STAT" + struct.pack("<III", *fields))

    def receive(self, path: str) -> None:
        data = b""
        while True:
            name, size = self.read(4), struct.unpack("<I", self.read(4))[0]
            if name == b"DONE":
                break
            data += self.read(size)
        if (self.server.folder / "full").exists():
            self.refuse(f"couldn't write {path}: No space left on device")
            return
        if os.path.isdir(path):
            self.refuse(f"couldn't create file {path}: Is a directory")
            return
        Path(path).write_bytes(data)
        self.request.sendall(b"OKAY" + struct.pack("<I", 0))

    def send(self, path: str) -> None:
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            self.refuse(f"open failed: {error.strerror}")
            return
        for start in range(0, len(data), 65536):
            part = data[start : start + 65536]
            self.request.sendall(b"DATA" + struct.pack("<I", len(part)) + part)
        self.request.sendall(b"DONE" + struct.pack("<I", 0))

    def refuse(self, message: str) -> None:
        self.request.sendall(b"FAIL" + struct.pack("<I", len(message)) + message.encode())

    # wire -------------------------------------------------------------------------------------

    def read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self.request.recv(size - len(data))
            if not part:
                raise GoneError
            data += part
        return data

    def okay(self, text: str) -> None:
        self.request.sendall(f"OKAY{len(text):04x}{text}".encode())

    def fail(self, text: str) -> None:
        self.request.sendall(f"FAIL{len(text):04x}{text}".encode())


class FakeServer(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, port: int, folder: Path) -> None:
        super().__init__(("127.0.0.1", port), Session)
        self.folder = folder
        self.root = folder / "root"
        self.running: set[subprocess.Popen[bytes]] = set()
        self.to_devices: list[socket.socket] = []

    def devices(self) -> dict[str, str]:
        found: dict[str, str] = json.loads((self.folder / "devices.json").read_text())
        return found

    def environment(self) -> dict[str, str]:
        """The device's environment: its own commands first, then those of this machine."""
        path = f"{self.root}/bin:{os.environ['PATH']}"
        return {"PATH": path, "TMPDIR": str(self.root / "tmp"), "HOME": "/"}

    def watch(self) -> None:
        """Cut every connection while no device is attached."""
        while True:
            time.sleep(0.05)
            if set(self.devices().values()) == {"unplugged"}:
                for process in list(self.running):
                    os.killpg(process.pid, signal.SIGHUP)
                while self.to_devices:
                    with contextlib.suppress(OSError):
                        self.to_devices.pop().shutdown(socket.SHUT_RDWR)


if __name__ == "__main__":
    # Under nohup, child processes would inherit that SIGHUP is ignored.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with FakeServer(int(sys.argv[1]), Path(sys.argv[2])) as server:
        threading.Thread(target=server.watch, daemon=True).start()
        server.serve_forever()
