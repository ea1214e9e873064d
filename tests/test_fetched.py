"""Fetching, from a server on this machine: what is kept, what is refused, and what is left behind.

The checksums of the true files cannot be tried here; what they stand for is said beside them.
"""

from __future__ import annotations

import gzip
import hashlib
import struct
import sys
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from fresh import printed

from cnnx.data import _fetched, fashion_mnist, mnist

pooch = pytest.importorskip("pooch")

NAMES = [
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
]


def make_files():
    """Seven and four images of noise, as the four files of a data set."""
    rng = np.random.default_rng(0)
    arrays = []
    for n in (7, 4):
        arrays.append(rng.integers(0, 256, (n, 6, 5)).astype(np.uint8))
        arrays.append((np.arange(n) % 3).astype(np.uint8))
    files = {}
    for name, array in zip(NAMES, arrays, strict=True):
        header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
        files[name] = gzip.compress(header + array.tobytes())
    return files, arrays


FILES, ARRAYS = make_files()


class Server:
    """Serves `files`; what it is asked for is in `asked`, and `cut` names are broken off."""

    def __init__(self):
        self.files, self.asked, self.cut = dict(FILES), [], set()
        self.meeting = None
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                name = self.path.rpartition("/")[2]
                server.asked.append(name)
                if name == NAMES[0] and server.meeting is not None:
                    server.meeting.wait()
                if name not in server.files:
                    self.send_error(404)
                    return
                content = server.files[name]
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2] if name in server.cut else content)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def stop(self):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server()
    yield server
    if server._thread.is_alive():
        server.stop()


def source_at(*urls):
    sums = tuple(hashlib.sha256(FILES[name]).hexdigest() for name in NAMES)
    return _fetched.Source("Noise", "noise", urls, sums, ("a", "b", "c"))


def check(data):
    assert data.name == "Noise"
    assert data.class_names == ("a", "b", "c")
    assert data.classes == 3
    for x, y, i in ((data.x_train, data.y_train, 0), (data.x_test, data.y_test, 2)):
        assert x.dtype == np.float32 and y.dtype == np.int64
        np.testing.assert_array_equal(np.rint(x[:, 0] * 255), ARRAYS[i])
        np.testing.assert_array_equal(y, ARRAYS[i + 1])


def kept(folder):
    return sorted(file.name for file in folder.iterdir()) if folder.exists() else []


def test_fetched_once_and_then_from_the_cache(server, tmp_path):
    source, folder = source_at(server.url), tmp_path / "new" / "folder"
    check(_fetched.fetched(source, folder))
    assert server.asked == NAMES
    assert kept(folder) == sorted(NAMES)
    server.stop()
    check(_fetched.fetched(source, folder))
    assert len(server.asked) == 4


def test_the_folder_of_the_cache(server, tmp_path, monkeypatch):
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / project)
    check(_fetched.fetched(source_at(server.url), None))
    assert kept(tmp_path / "cnnx" / "noise") == sorted(NAMES)


def test_a_wrong_file_is_refused_and_not_kept(server, tmp_path):
    server.files[NAMES[2]] = gzip.compress(b"something else")
    with pytest.raises(OSError, match=rf"{NAMES[2]} could not be fetched.*hash.*") as caught:
        _fetched.fetched(source_at(server.url), tmp_path)
    assert server.url in str(caught.value)
    assert kept(tmp_path) == sorted(NAMES[:2])
    server.files = dict(FILES)
    check(_fetched.fetched(source_at(server.url), tmp_path))
    assert server.asked == [*NAMES[:3], *NAMES[2:]]


def test_a_download_that_breaks_off_leaves_nothing(server, tmp_path):
    server.cut.add(NAMES[0])
    with pytest.raises(OSError, match=NAMES[0]):
        _fetched.fetched(source_at(server.url), tmp_path)
    assert kept(tmp_path) == []
    server.cut.clear()
    check(_fetched.fetched(source_at(server.url), tmp_path))


def test_an_interrupt_leaves_nothing(server, tmp_path, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(pooch.core, "hash_matches", interrupted)  # after all bytes have come
    with pytest.raises(KeyboardInterrupt):
        _fetched.fetched(source_at(server.url), tmp_path)
    assert server.asked == NAMES[:1]
    assert kept(tmp_path) == []


@pytest.mark.parametrize("damage", [lambda c: c[:-1], lambda c: b"", lambda c: c[:-1] + b"\1"])
def test_a_file_of_the_cache_that_was_damaged_is_fetched_again(server, tmp_path, damage):
    check(_fetched.fetched(source_at(server.url), tmp_path))
    file = tmp_path / NAMES[1]
    assert damage(FILES[NAMES[1]]) != FILES[NAMES[1]]
    file.write_bytes(damage(FILES[NAMES[1]]))
    check(_fetched.fetched(source_at(server.url), tmp_path))
    assert file.read_bytes() == FILES[NAMES[1]]
    assert server.asked == [*NAMES, NAMES[1]]


def test_the_second_mirror_stands_in(server, tmp_path):
    """For one that is down, one that has not got a file, and one whose file is another."""
    other = Server()
    try:
        del other.files[NAMES[1]]
        other.files[NAMES[2]] = b"another"
        check(_fetched.fetched(source_at(other.url, server.url), tmp_path / "a"))
        assert server.asked == NAMES[1:3]
    finally:
        other.stop()
    check(_fetched.fetched(source_at(other.url, server.url), tmp_path / "b"))
    assert server.asked == [*NAMES[1:3], *NAMES]


def test_no_mirror_answers(server, tmp_path):
    server.stop()
    with pytest.raises(OSError, match=r"train-images.* could not be fetched") as caught:
        _fetched.fetched(source_at(server.url, server.url + "second/"), tmp_path)
    assert str(caught.value).count(server.url) >= 2
    assert "\n" not in str(caught.value)
    assert kept(tmp_path) == []


def test_two_processes_at_once(server, tmp_path):
    source = source_at(server.url)
    code = f"""
import zlib
from pathlib import Path
from cnnx.data._fetched import Source, fetched
print(zlib.crc32(fetched({source!r}, Path("cache")).x_train))
"""
    server.meeting = threading.Barrier(2, timeout=60)  # neither gets its file before both asked
    with ThreadPoolExecutor(2) as pool:
        sums = list(pool.map(lambda _: printed(code, tmp_path), range(2)))
    images = _fetched.fetched(source, tmp_path / "cache").x_train
    assert sums == [str(zlib.crc32(images))] * 2
    assert server.asked[:2] == [NAMES[0]] * 2
    assert kept(tmp_path / "cache") == sorted(NAMES)


def test_without_pooch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(ImportError, match=r"not installed: pip install 'cnnx\[data\]'"):
        mnist(tmp_path)
    assert kept(tmp_path) == []


def test_the_sources():
    for source, function in ((_fetched.MNIST, mnist), (_fetched.FASHION_MNIST, fashion_mnist)):
        assert len(source.mirrors) >= 2
        assert source.mirrors[0].startswith("https://")
        assert all(url.endswith("/") for url in source.mirrors)
        assert len(set(source.sha256)) == 4
        assert all(len(bytes.fromhex(text)) == 32 for text in source.sha256)
        assert len(source.class_names) == 10
        with pytest.raises(TypeError, match="folder is 3"):
            function(3)
