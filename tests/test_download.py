"""Downloads from a server that misbehaves in every way we could think of."""

import hashlib
import os
import re
import socket
import struct
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from huggingface_hub import constants
from transformers import AutoModel

from jukebox_hf.conversion import download as download_module
from jukebox_hf.conversion.convert import convert_checkpoint
from jukebox_hf.conversion.download import download
from jukebox_hf.conversion.official import OFFICIAL_CHECKPOINTS, OfficialCheckpoint

CONTENT = bytes(range(251)) * 4000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server:
    """Serves one file, and does wrong what its attributes say.

    Args:
        break_after: bytes after which a connection ends, once for each number; None lets one through.
        reset: end connections with a reset instead of a close.
        ranges: "yes", "no" (the whole file is sent whatever is asked) or "capped" (at most 100 000 bytes a request).
        lie_about_size: bytes that the header Content-Length and the body are short of.
        status: answer with this error.
    """

    def __init__(self, content: bytes = CONTENT):
        self.content = content
        self.break_after: list[int | None] = []
        self.reset = False
        self.ranges = "yes"
        self.lie_about_size = 0
        self.status: int | None = None
        self.served = 0
        self.asked: list[str | None] = []
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, self))
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._http.server_port}/file.pth.tar"

    def close(self):
        self._http.shutdown()
        self._http.server_close()


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, server: Server, *arguments):
        self.plan = server
        super().__init__(*arguments)

    def log_message(self, *_):
        pass

    def do_GET(self):
        plan = self.plan
        asked = self.headers.get("Range")
        plan.asked.append(asked)
        if plan.status is not None or len(plan.asked) > 20:
            self.send_error(plan.status or 410, "nobody should ask so often")
            return
        total, start = len(plan.content), 0
        if asked and plan.ranges != "no":
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
            if start >= total:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{total}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
        end = total - plan.lie_about_size
        if plan.ranges == "capped" and asked:
            end = min(end, start + 100_000)
        if asked and plan.ranges != "no":
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{total}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        body = plan.content[start:end]
        stop = plan.break_after.pop(0) if plan.break_after else None
        plan.served += len(body[:stop])
        self.wfile.write(body[:stop])
        if stop is not None and plan.reset:
            # Zero seconds of linger: closing sends a reset.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(download_module, "RETRY_SECONDS", 0.0)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache" / "file.pth.tar"


@pytest.fixture
def leftover(path):
    """The file that a killed download leaves."""
    path.parent.mkdir()
    return path.with_name("file.pth.tar.incomplete")


def test_a_whole_file(server, path):
    assert download(server.url, path, len(CONTENT), SHA256) == path
    assert path.read_bytes() == CONTENT
    assert sorted(file.name for file in path.parent.iterdir() if file.suffix != ".lock") == ["file.pth.tar"]


def test_a_finished_file_is_used_again(server, path):
    for _ in range(2):
        download(server.url, path, len(CONTENT), SHA256)
    assert server.served == len(CONTENT)


def test_a_finished_file_with_a_wrong_checksum_is_replaced(server, path):
    path.parent.mkdir()
    path.write_bytes(b"rot")
    download(server.url, path, sha256=SHA256)
    assert path.read_bytes() == CONTENT


def test_broken_connections_are_resumed(server, path):
    server.break_after = [100_000, 300_000, None]
    download(server.url, path, len(CONTENT), SHA256)
    assert path.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-", "bytes=400000-"] and server.served == len(CONTENT)


def test_reset_connections_are_resumed(server, path):
    server.break_after, server.reset = [100_000, 300_000, None], True
    download(server.url, path, len(CONTENT), SHA256)
    # How much a reset discards on its way is chance.
    assert path.read_bytes() == CONTENT and len(server.asked) == 3


def test_a_killed_download_goes_on(server, path, leftover):
    leftover.write_bytes(CONTENT[:700_000])
    download(server.url, path, len(CONTENT), SHA256)
    assert path.read_bytes() == CONTENT
    assert server.asked == ["bytes=700000-"] and server.served == len(CONTENT) - 700_000
    assert not leftover.exists()


def test_a_download_killed_before_the_file_was_moved(server, path, leftover):
    leftover.write_bytes(CONTENT)
    download(server.url, path, sha256=SHA256)
    assert path.read_bytes() == CONTENT and server.served == 0


def test_a_leftover_that_is_too_long_is_thrown_away(server, path, leftover):
    leftover.write_bytes(CONTENT + b"more")
    download(server.url, path, sha256=SHA256)
    assert path.read_bytes() == CONTENT


def test_a_server_that_ignores_ranges(server, path, leftover):
    leftover.write_bytes(CONTENT[:700_000])
    server.ranges = "no"
    download(server.url, path, len(CONTENT), SHA256)
    assert path.read_bytes() == CONTENT and server.served == len(CONTENT)


def test_a_server_that_sends_a_range_in_parts(server, path, leftover):
    leftover.write_bytes(CONTENT[:700_000])
    server.ranges = "capped"
    download(server.url, path, sha256=SHA256)
    assert path.read_bytes() == CONTENT and len(server.asked) == 4


def test_a_truncated_file_is_refused_and_deleted(server, path):
    server.lie_about_size = 10
    with pytest.raises(ValueError, match=f"{server.url} sent has {len(CONTENT) - 10} bytes and not {len(CONTENT)}"):
        download(server.url, path, size=len(CONTENT))
    assert not any(file.suffix != ".lock" for file in path.parent.iterdir())


def test_a_wrong_checksum_is_refused_and_deleted(server, path):
    with pytest.raises(ValueError, match=f"has the sha256 {SHA256} and not 0000.* put it at {path}"):
        download(server.url, path, sha256="0" * 64)
    assert not any(file.suffix != ".lock" for file in path.parent.iterdir())


def test_it_gives_up_when_nothing_new_arrives_but_keeps_what_has(server, path, leftover):
    server.break_after = [100_000] + [0] * 20
    with pytest.raises(ConnectionError, match=f"Cannot download {server.url} "):
        download(server.url, path, sha256=SHA256)
    assert len(server.asked) == 1 + download_module.MAX_FAILURES and leftover.read_bytes() == CONTENT[:100_000]
    server.break_after = []
    download(server.url, path, sha256=SHA256)
    assert server.served == len(CONTENT)


def test_a_missing_file_is_not_asked_for_again(server, path):
    server.status = 404
    with pytest.raises(ConnectionError, match=rf"{server.url} \(.*404.*\).* put it at {path}") as error:
        download(server.url, path)
    assert len(server.asked) == 1 and "\n" not in str(error.value)


def test_no_network(server, path):
    server.close()
    with pytest.raises(ConnectionError, match=f"Cannot download {server.url} .* put it at {path}"):
        download(server.url, path)


def test_offline_mode(server, path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match=f"offline mode is enabled.* put it at {path}"):
        download(server.url, path)
    assert not server.asked


# End to end


@pytest.fixture
def official(server, monkeypatch, tmp_path):
    """Serves content as the official VQ-VAE; the cache is in a folder of the test."""
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))

    def serve(content: bytes):
        server.content = content
        known = OFFICIAL_CHECKPOINTS["5b-vqvae"]
        sha256 = hashlib.sha256(content).hexdigest()
        replaced = OfficialCheckpoint(server.url, known.config, known.sample_length, len(content), sha256)
        monkeypatch.setitem(OFFICIAL_CHECKPOINTS, "5b-vqvae", replaced)

    return serve


def test_an_official_name_over_a_bad_connection(official, server, tmp_path, request):
    checkpoint = request.path.parent / "goldens" / "vqvae-5b-size" / "checkpoint.pth.tar"
    official(checkpoint.read_bytes())
    server.break_after = [1_000_000, 2_000_000, None]
    model = AutoModel.from_pretrained(convert_checkpoint("5b-vqvae", tmp_path / "out"))
    expected = torch.load(checkpoint, weights_only=True)["model"]["decoders.2.out.weight"]
    assert torch.equal(model.decoders[2].out_conv.weight, expected)
    assert server.served == len(server.content)
    convert_checkpoint("5b-vqvae", tmp_path / "again")
    assert server.served == len(server.content)


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_a_hostile_official_file(official, tmp_path):
    torch.save({"model": {}, "hps": Hostile(tmp_path / "mark")}, tmp_path / "hostile")
    official((tmp_path / "hostile").read_bytes())
    with pytest.raises(ValueError, match=r"refused: its pickle asks for posix\.mkdir"):
        convert_checkpoint("5b-vqvae", tmp_path / "out")
    assert not (tmp_path / "mark").exists() and not (tmp_path / "out").exists()
    torch.load(tmp_path / "hostile", weights_only=False)
    assert (tmp_path / "mark").exists(), "the file is not as hostile as this test believes"


def test_an_official_file_that_is_another_checkpoint(official, tmp_path, request):
    official((request.path.parent / "goldens" / "prior-5b-style" / "checkpoint.pth.tar").read_bytes())
    with pytest.raises(ValueError, match=r"does not fit its configuration.*without a place in the model.*missing"):
        convert_checkpoint("5b-vqvae", tmp_path / "out")
