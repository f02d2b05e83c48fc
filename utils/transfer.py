"""Copies what is behind a URL into a file: python -I utils/transfer.py URL FILE SECONDS

SECONDS is the time to connect, for each address of the host. `utils.download` runs this in a
process of its own, which it can end at any moment: a server may answer a byte a second in its
handshake, its head or its body. So this imports the standard library alone, and starts at once.
"""

import http.client
import os
import sys
import urllib.error
import urllib.request

CHUNK_BYTES = 1 << 16


def transfer(url: str, path: str, connect_seconds: float) -> None:
    """Write the bytes behind `url` to `path` as they arrive. Raises OSError or HTTPException."""
    parent, got = os.getppid(), 0
    request = urllib.request.Request(url, headers={"User-Agent": "cifar10-download/1"})
    opener = urllib.request.build_opener(_Handler)
    with opener.open(request, timeout=connect_seconds) as response, open(path, "wb", 0) as file:
        length = response.length  # None where the server does not tell
        while os.getppid() == parent and (chunk := response.read1(CHUNK_BYTES)):
            got += file.write(chunk)
    if length not in (None, got):
        raise OSError(f"the connection closed after {got:,} of {length:,} bytes")


class _Patient:
    """Mixed into a connection: the time limit is on connecting alone."""

    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(None)


class _HTTP(_Patient, http.client.HTTPConnection):
    pass


class _HTTPS(_Patient, http.client.HTTPSConnection):
    pass


class _Handler(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    def http_open(self, request):
        return self.do_open(_HTTP, request)

    def https_open(self, request):
        return self.do_open(_HTTPS, request)


def main() -> None:
    url, path, seconds = sys.argv[1:]
    try:
        transfer(url, path, float(seconds))
    except urllib.error.HTTPError as error:
        sys.exit(f"HTTP {error.code} {error.reason}")
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            reason = f"no connection within {seconds} s"
        sys.exit(f"{reason}")


if __name__ == "__main__":
    main()
