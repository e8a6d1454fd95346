"""The content-addressed store of Xet on loopback, as far as its client uploads and downloads small files.

One xorb and one shard per upload, which is what a file of a few megabytes is. Version 2 of the upload, which the client
asks for first, is not there: it goes on with version 1.
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator

from hub_server import Asked, HubServer

Answer = tuple[int, dict[str, str], bytes]


class XetStore:
    """Answers the requests of the Xet client that reach a hub; `HubServer.xet`.

    Attributes:
        xorbs: uploaded blocks of compressed chunks, by hash.
        files: (xorb, length in bytes) of each file, by the hash that Xet knows it by.
    """

    def __init__(self, hub: HubServer) -> None:
        self.hub, self.xorbs, self.files = hub, dict[str, bytes](), dict[str, tuple[str, int]]()

    def __call__(self, asked: Asked) -> Answer | None:
        path = asked.path.partition("?")[0]
        last = path.rpartition("/")[2]
        if "/xet-write-token/" in path or "/xet-read-token/" in path:
            return self._token()
        if path.startswith("/v1/xorbs/"):
            self.xorbs[last] = asked.body
            return _json({"was_inserted": True})
        if path == "/v1/shards":
            self._register(asked.body)
            return _json({"result": 1})
        if path.startswith("/v1/reconstructions/"):
            return self._reconstruction(last)
        if path.startswith("/xorb/"):
            start, end = map(int, asked.headers["range"].removeprefix("bytes=").split("-"))
            return 206, {}, self.xorbs[last][start : end + 1]
        return (404, {}, b"") if path.startswith(("/v1/", "/v2/")) else None

    def _token(self) -> Answer:
        end = int(time.time()) + 3600
        headers = {"X-Xet-Cas-Url": self.hub.url, "X-Xet-Access-Token": "t", "X-Xet-Token-Expiration": str(end)}
        return 200, headers, json.dumps({"casUrl": self.hub.url, "accessToken": "t", "exp": end}).encode()

    def _register(self, shard: bytes) -> None:
        """Read the files of a shard: a header of 48 bytes, then 48 bytes per file and per segment, until a bookend."""
        place = 48
        while (file_hash := shard[place : place + 32]) != b"\xff" * 32:
            flags, entries = struct.unpack_from("<II", shard, place + 32)
            segments = [shard[place + 48 * (k + 1) :][:48] for k in range(entries)]
            (xorb,) = {_hex(segment[:32]) for segment in segments}
            length = sum(struct.unpack_from("<I", segment, 36)[0] for segment in segments)
            self.files[_hex(file_hash)] = xorb, length
            place += 48 * (1 + entries + entries * bool(flags & 1 << 31))  # of the segments, what verifies them
            if flags & 1 << 30:
                self.hub.xet_hashes[_hex(shard[place : place + 32])] = _hex(file_hash)
                place += 48

    def _reconstruction(self, file_hash: str) -> Answer:
        xorb, length = self.files[file_hash]
        content = self.xorbs[xorb]
        chunks = {"start": 0, "end": len([*_chunks(content)])}
        source = {"range": chunks, "url": f"{self.hub.url}/xorb/{xorb}"}
        source |= {"url_range": {"start": 0, "end": sum(_chunks(content)) - 1}}
        term = {"hash": xorb, "unpacked_length": length, "range": chunks}
        return _json({"offset_into_first_range": 0, "terms": [term], "fetch_info": {xorb: [source]}})


def _chunks(xorb: bytes) -> Iterator[int]:
    """Yield the bytes of each chunk with its header: version, compressed size, scheme, size."""
    place = 0
    while place + 8 <= len(xorb) and xorb[place] == 0:
        size = 8 + int.from_bytes(xorb[place + 1 : place + 4], "little")
        yield size
        place += size


def _hex(digest: bytes) -> str:
    """Return a hash as Xet writes it: four little-endian numbers."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", digest))


def _json(document: object) -> Answer:
    return 200, {"Content-Type": "application/json"}, json.dumps(document).encode()
