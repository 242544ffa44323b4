"""Downloads one large file: resumed, checked, and in place only when whole."""

import hashlib
import logging
import os
import time
from pathlib import Path

import httpx2
from huggingface_hub import constants
from huggingface_hub.errors import OfflineModeIsEnabled
from huggingface_hub.utils import WeakFileLock, http_stream_backoff, tqdm

logger = logging.getLogger(__name__)

# Broken connections in a row that brought nothing new, and the seconds before the next try.
MAX_FAILURES = 5
RETRY_SECONDS = 1.0


def file_sha256(path: Path) -> str:
    """Computes the SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(url: str, path: Path, size: int | None = None, sha256: str | None = None) -> Path:
    """Downloads `url` to `path`, unless the file is there already, and returns `path`.

    What has arrived waits in `<path>.incomplete`, so a broken, killed or repeated download goes on where it stopped.

    Args:
        size: the expected size in bytes.
        sha256: the expected checksum, in hexadecimal digits.

    Raises:
        ConnectionError: the server cannot be reached, keeps breaking the connection, or does not have the file.
        ValueError: the file that arrived has another size or checksum; it is deleted.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.incomplete")
    with WeakFileLock(path.with_name(f"{path.name}.lock")):
        if path.exists():
            problem = _find_problem(path, size, sha256)
            if problem is None:
                return path
            logger.warning("%s %s: downloading it again.", path, problem)
        try:
            _fetch(url, partial)
        except (httpx2.HTTPError, OfflineModeIsEnabled) as error:
            cause = str(error).partition("\n")[0] or type(error).__name__
            raise ConnectionError(
                f"Cannot download {url} ({cause}). Check the network and run this again, which goes on where it "
                f"stopped; or fetch the file elsewhere and put it at {path}."
            ) from error
        if problem := _find_problem(partial, size, sha256):
            partial.unlink()
            raise ValueError(
                f"What {url} sent {problem}, so it was deleted. Run this again; if that does not help, fetch the file "
                f"elsewhere and put it at {path}."
            )
        os.replace(partial, path)
    return path


def _find_problem(path: Path, size: int | None, sha256: str | None) -> str | None:
    if size is not None and path.stat().st_size != size:
        return f"has {path.stat().st_size} bytes and not {size}"
    if sha256 is not None and (actual := file_sha256(path)) != sha256:
        return f"has the sha256 {actual} and not {sha256}"
    return None


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _fetch(url: str, partial: Path):
    """Appends to `partial` what it lacks, over as many connections as it takes while each brings something new."""
    failures = 0
    while True:
        before = _size(partial)
        try:
            return _receive(url, partial)
        except httpx2.TransportError as error:
            failures = 1 if _size(partial) > before else failures + 1
            if failures > MAX_FAILURES:
                raise
            logger.warning("%s after %d bytes of %s: trying again.", error, _size(partial), url)
            time.sleep(RETRY_SECONDS)


def _receive(url: str, partial: Path):
    """Appends to `partial` what one connection brings."""
    start = _size(partial)
    # A compressed answer could not be resumed.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    with http_stream_backoff(
        "GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT, retry_on_exceptions=()
    ) as response:
        _, _, total = response.headers.get("Content-Range", "").rpartition("/")
        if start and response.status_code == httpx2.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            if total == str(start):
                return
            partial.unlink()
            raise httpx2.RemoteProtocolError(f"{start} bytes had arrived, but the file has {total or 'fewer'}")
        response.raise_for_status()
        if response.status_code != httpx2.codes.PARTIAL_CONTENT:
            start, total = 0, response.headers.get("Content-Length", "")
        total = int(total) if total.isdigit() else None
        with (
            partial.open("ab" if start else "wb") as file,
            tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=partial.stem) as progress,
        ):
            # With a chunk size, what a broken connection brought of the last chunk would be lost.
            for chunk in response.iter_raw():
                file.write(chunk)
                progress.update(len(chunk))
    if total not in (None, _size(partial)):
        raise httpx2.RemoteProtocolError(f"{_size(partial)} of {total} bytes arrived")
