"""``zeroline serve`` as a process of its own, a tiny model to offer, and the requests of its page put by hand."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch

LABELS = {0: "<img src=x onerror=alert(1)>", 1: "<script>alert(2)</script>"}
SECONDS = 300.0  # until a server is up, or an answer there


def hostile_model(folder: Path) -> Path:
    """A classifier of 32 x 32 pictures whose two labels are HTML."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

    torch.manual_seed(0)
    config = ViTConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8)
    config.id2label = LABELS
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@dataclass
class Served:
    """A server that runs."""

    process: subprocess.Popen[str]
    port: int
    log: Path

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def request(self, method: str, path: str, body: bytes | str | None = None, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
        """(status, body) of one request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        try:
            connection.request(method, quote(path, safe="/:?=&%.+~"), body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def config(self) -> dict[str, Any]:
        return json.loads(self.request("GET", "/config")[1])

    def events(self) -> dict[str, dict[str, Any]]:
        """What the page can ask: the button's (or the part's) name -> its event."""
        told = self.config()
        parts = {part["id"]: part for part in told["components"]}
        found = {}
        for event in told["dependencies"]:
            trigger = event["targets"][0][0]
            props = parts.get(trigger, {}).get("props", {})
            found[str(props.get("value") if parts.get(trigger, {}).get("type") == "button" else f"{props.get('label', 'load')} {event['id']}")] = (
                event
            )
        return found

    def usual(self, event: dict[str, Any]) -> list[Any]:
        """What the page would send, were its button pressed at once."""
        parts = {part["id"]: part for part in self.config()["components"]}
        return [parts[one]["props"].get("value") for one in event["inputs"]]

    def join(self, event: dict[str, Any], data: Any, session: str, **more: Any) -> tuple[int, bytes]:
        """A question into the queue."""
        asked = json.dumps({"data": data, "fn_index": event["id"], "session_hash": session, **more})
        return self.request("POST", "/gradio_api/queue/join", asked, {"content-type": "application/json"})

    def told(self, session: str) -> list[dict[str, Any]]:
        """What the server tells a session until its questions are done."""
        status, body = self.request("GET", f"/gradio_api/queue/data?session_hash={session}")
        assert status == 200, body
        return [json.loads(line[6:]) for line in body.decode().splitlines() if line.startswith("data: ")]

    def ask(self, event: dict[str, Any], data: Any) -> tuple[int, dict[str, Any]]:
        """(status of the question, how it ended)."""
        session = uuid.uuid4().hex
        status, body = self.join(event, data, session)
        if status != 200:
            return status, {"refused": body.decode(errors="replace")}
        return status, next(one for one in self.told(session) if one["msg"] in ("process_completed", "unexpected_error"))

    def said(self, event: dict[str, Any], data: Any) -> str:
        """The sentence of an answer, or of what went wrong, as HTML."""
        _, ended = self.ask(event, data)
        assert ended.get("success"), ended
        return ended["output"]["data"][0]

    def upload(self, content: bytes, name: str = "a.png") -> tuple[int, bytes]:
        """A file as the browser sends it."""
        line = uuid.uuid4().hex
        head = f'--{line}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\nContent-Type: image/png\r\n\r\n'
        body = head.encode() + content + f"\r\n--{line}--\r\n".encode()
        return self.request("POST", "/gradio_api/upload", body, {"content-type": f"multipart/form-data; boundary={line}"})

    def uploaded(self, content: bytes, name: str = "a.png") -> dict[str, Any]:
        """An upload as a question names it."""
        status, body = self.upload(content, name)
        assert status == 200, body
        return {"path": json.loads(body)[0], "orig_name": name, "meta": {"_type": "gradio.FileData"}}


@contextlib.contextmanager
def running(*options: str) -> Iterator[Served]:
    """A server on a free port, until the block ends."""
    import tempfile

    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        command = [sys.executable, "-m", "zeroline.cli", "serve", "--port", str(port), *options]
        with log.open("w") as written:
            process = subprocess.Popen(command, stdout=written, stderr=subprocess.STDOUT, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        try:
            wait(process, log, port)
            yield Served(process, port, log)
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(120)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait(process: subprocess.Popen[str], log: Path, port: int) -> None:
    """Until the server says where it is."""
    end = time.monotonic() + SECONDS
    while f":{port}" not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.1)
