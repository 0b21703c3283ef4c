"""download_ckpt.sh against a server on this machine that does what servers and networks do."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

from utils import UserError

import numpy as np
import pytest
import torch
from conftest import ROOT, copy_project
from safetensors.torch import save_file

from ckpt import content, download, registry, transfer
from inference.options import complete_captioner_options

# They begin as a safetensors file does: the length of a JSON object, and the object.
CONTENT, OTHER = ((2).to_bytes(8, "little") + b"{}" + np.random.default_rng(seed).bytes(299_990)
                  for seed in (0, 1))
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Asks ``server.answer(handler, path, start)``; HTTP/1.0, so that each connection is closed."""

    def do_GET(self):
        ranged = self.headers.get("Range")
        self.server.requests.append((self.path, ranged, self.headers.get("If-Range")))
        start = int(ranged.removeprefix("bytes=").rstrip("-")) if ranged else 0
        try:
            self.server.answer(self, start)
        except (BrokenPipeError, ConnectionResetError):
            pass

    def send(self, status, content=b"", **headers):
        self.send_response(status)
        for name, value in {"Content_Length": len(content), **headers}.items():
            if value is not None:
                self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(content)

    def give(self, start=0, stop=None, content=CONTENT, **headers):
        """The content from ``start`` on, as a server does that knows ranges, but no further than
        ``stop``, whatever it has announced."""
        if start >= len(content):
            self.send(416, Content_Range=f"bytes */{len(content)}")
            return
        if start:
            headers["Content_Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        headers = {"Content_Length": len(content) - start, **headers}
        self.send(206 if start else 200, content[start:stop], **headers)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def listening():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def server(listening):
    listening.requests = []
    listening.answer = lambda handler, start: handler.give(start, ETag='"1"')
    return listening


@pytest.fixture
def project(tmp_path, monkeypatch, server):
    """An empty ckpt/, and functions to fill its list and run the command."""
    folder, waits = tmp_path / "ckpt", []
    folder.mkdir()
    monkeypatch.setattr(registry, "FOLDER", folder)
    monkeypatch.setattr(transfer, "sleep", waits.append)

    def listed(*entries, **defaults):
        (folder / "checkpoints.json").write_text(
            json.dumps({"checkpoints": entries, "defaults": defaults}))

    def entry(name="a", **fields):
        return {"name": name, "file": f"{name}.bin", "size": len(CONTENT), "sha256": SHA256,
                "url": f"http://127.0.0.1:{server.server_port}/{name}", **fields}

    return SimpleNamespace(folder=folder, fetched=folder / "fetched", waits=waits, list=listed,
                           entry=entry, file=folder / "fetched" / "a.bin")


def run(capsys, *words):
    """(status, lines on stderr without progress bars, stdout) of the command, in this process."""
    try:
        status = download.main(["--insecure", *map(str, words)])
    except SystemExit as stop:
        status = stop.code
    printed = capsys.readouterr()
    lines = printed.err.replace("\r", "\n").splitlines()
    return status, [line for line in lines if line.strip() and "B/s" not in line
                    and "?B" not in line], printed.out


def left(project):
    return sorted(path.name for path in project.fetched.iterdir())


# --- what goes well -----------------------------------------------------------------------------


def test_a_file_is_fetched_once(project, server, capsys):
    project.list(project.entry())
    assert run(capsys, "--check")[0] == 0 and run(capsys, "--check", "a")[0] == 1
    status, lines, _ = run(capsys, "a")
    assert status == 0 and project.file.read_bytes() == CONTENT and left(project) == ["a.bin"]
    assert lines == [f"a: wrote {project.file}"]
    status, lines, _ = run(capsys, "a")
    assert status == 0 and lines == [f"a: matches the list: {project.file}"]
    assert len(server.requests) == 1
    assert run(capsys, "--check", "a") == (0, [], f"a: matches the list: {project.file}\n")
    assert not (project.folder / "checkpoints.lock.json").exists()
    project.file.write_bytes(OTHER)
    status, _, out = run(capsys, "--check")
    assert status == 1 and "a: is not as listed (its SHA-256 is " in out
    status, lines, _ = run(capsys, "a")
    assert status == 0 and "fetching it again" in lines[0] and project.file.read_bytes() == CONTENT


def test_later_files_are_compared_with_the_first(project, server, capsys):
    project.list(project.entry(size=None, sha256=None))
    status, lines, _ = run(capsys, "a")
    assert status == 0 and f"later files are compared with its SHA-256, {SHA256}" in lines[-1]
    recorded = json.loads((project.folder / "checkpoints.lock.json").read_text())
    assert list(recorded.values()) == [{"size": len(CONTENT), "sha256": SHA256}]
    assert "matches the list" in run(capsys, "--check")[2]
    server.answer = lambda handler, start: handler.give(start, content=OTHER)
    project.file.unlink()
    status, lines, _ = run(capsys, "a")
    assert status == 1 and left(project) == []
    lock = project.folder / "checkpoints.lock.json"  # a refusal names what it goes by
    assert f"is not what {lock} (written when the first file came" in lines[0]
    project.list(project.entry(size=None, sha256=None, url=project.entry()["url"] + "2"))
    assert run(capsys, "a")[0] == 0  # another URL is another file


def test_without_a_name_the_defaults_are_fetched(project, server, capsys):
    (project.folder / "s.bin").write_bytes(CONTENT)
    ships = project.entry("s", url=None, shipped=True)
    project.list(project.entry("a"), project.entry("b"), ships, p1="a", p2="s")
    assert run(capsys)[0] == 0 and left(project) == ["a.bin"]
    assert run(capsys, "--all")[0] == 0 and left(project) == ["a.bin", "b.bin"]
    (project.folder / "s.bin").write_bytes(OTHER)
    status, lines, _ = run(capsys)
    assert status == 1 and "git checkout -- ckpt/s.bin restores it" in lines[1]
    (project.folder / "s.bin").unlink()
    assert run(capsys, "--check")[0] == 1 and "error: s: is not here" in run(capsys)[1]


# --- what goes wrong on the way -----------------------------------------------------------------


def breaking(project, server, after):
    """A server that drops the connection after so many bytes, once for each of ``after``."""
    after = list(after)

    def answer(handler, start):
        stop = start + after.pop(0) if after else None
        handler.give(start, stop, ETag='"1"')

    server.answer = answer
    project.list(project.entry())


def test_a_connection_that_breaks_goes_on_where_it_stopped(project, server, capsys):
    breaking(project, server, [100_000, 50_000])
    assert run(capsys, "a")[0] == 0 and project.file.read_bytes() == CONTENT
    assert [request[1:] for request in server.requests] == [
        (None, None), ("bytes=100000-", '"1"'), ("bytes=150000-", '"1"')]
    assert project.waits == [1, 2] and left(project) == ["a.bin"]


def test_the_next_run_goes_on_too(project, server, capsys):
    breaking(project, server, [50_000] * 4)
    status, lines, _ = run(capsys, "a")
    assert status == 1 and "not available now: a (the connection broke off after 200000" in lines[0]
    assert left(project) == ["a.bin.part", "a.bin.part.json"] and project.waits == [1, 2, 4]
    assert run(capsys, "a")[0] == 0 and project.file.read_bytes() == CONTENT
    assert server.requests[-1][1] == "bytes=200000-"


@pytest.mark.parametrize("answer", [
    lambda handler, start: handler.give(),  # knows no ranges
    lambda handler, start: (handler.send(206, b"x", Content_Range="bytes 7-7/300000") if start
                            else handler.give()),
    lambda handler, start: handler.send(416) if start else handler.give(),
    lambda handler, start: handler.send(206, b"x") if start else handler.give(),
])
def test_a_server_that_cannot_go_on_begins_anew(project, server, capsys, answer):
    project.list(project.entry())
    begun(project, CONTENT[:1000], validator='"1"')
    server.answer = answer
    assert run(capsys, "a")[0] == 0
    assert project.file.read_bytes() == CONTENT and left(project) == ["a.bin"]


def begun(project, content, url=None, validator=""):
    """A transfer that an earlier run left."""
    project.fetched.mkdir()
    (project.fetched / "a.bin.part").write_bytes(content)
    (project.fetched / "a.bin.part.json").write_text(json.dumps(
        {"url": url or project.entry()["url"], "validator": validator}))


@pytest.mark.parametrize("fields, begin, ranges", [
    ({}, {"content": CONTENT[:1000]}, ["bytes=1000-"]),  # only the hash can tell, and does
    ({}, {"content": OTHER[:1000]}, ["bytes=1000-", None]),
    ({}, {"content": CONTENT}, []),  # stopped before it got its name
    ({}, {"content": CONTENT + b"more"}, ["bytes=300004-", None]),
    ({}, {"content": CONTENT[:1000], "url": "http://127.0.0.1/other"}, [None]),
    ({"sha256": None}, {"content": CONTENT[:1000]}, [None]),  # nothing could tell
    ({"sha256": None}, {"content": CONTENT[:1000], "validator": '"1"'}, ["bytes=1000-"]),
])
def test_what_was_begun_is_trusted_only_where_it_can_be(
        project, server, capsys, fields, begin, ranges):
    project.list(project.entry(**fields))
    begun(project, **begin)
    assert run(capsys, "a")[0] == 0 and project.file.read_bytes() == CONTENT
    assert [request[1] for request in server.requests] == ranges and left(project) == ["a.bin"]


def test_a_file_that_has_changed_is_not_mixed(project, server, capsys):
    def answer(handler, start):
        same = handler.headers.get("If-Range") == '"2"'
        handler.give(start if same else 0, content=OTHER, ETag='"2"')

    server.answer = answer
    project.list(project.entry(size=None, sha256=None))
    begun(project, CONTENT[:1000], validator='"1"')
    assert run(capsys, "a")[0] == 0 and project.file.read_bytes() == OTHER


def test_an_error_of_the_server_is_waited_out(project, server, capsys):
    codes = [500, 429, 503]
    server.answer = lambda handler, start: (handler.send(codes.pop(0)) if codes else handler.give())
    project.list(project.entry())
    assert run(capsys, "a")[0] == 0 and project.waits == [1, 2, 4]
    server.answer = lambda handler, start: handler.send(500)
    project.file.unlink()
    status, lines, _ = run(capsys, "a")
    assert status == 1 and len(lines) == 1 and "the server answers 500 Internal" in lines[0]


def plain(handler, start):
    handler.give(start, Content_Length=None)


@pytest.mark.parametrize("answer, fields, message", [
    (lambda handler, start: handler.send(404), {}, "the server answers 404 Not Found"),
    (lambda handler, start: handler.send(204), {}, "the server answers 204"),
    (lambda handler, start: handler.give(content=OTHER), {}, "is not what the list says: SHA-256"),
    (lambda handler, start: handler.give(content=CONTENT[:-1]), {},
     "has 299999 bytes, the list says 300000"),
    (lambda handler, start: handler.give(content=CONTENT[:-1]), {"size": None},
     "is not what the list says"),
    (plain, {"size": 7, "sha256": None}, "sends more than the 7 bytes"),
    (lambda handler, start: handler.send(302, Location="file:///etc/passwd"), {}, "not allowed"),
    (lambda handler, start: handler.send(302, Location="ftp://127.0.0.1/a"), {}, "is not https"),
    (lambda handler, start: handler.send(302, Location="/a"), {}, "infinite loop"),
    (None, {"url": "file:///etc/hostname"}, "is not https and was not fetched"),
    (None, {"url": "http://[1/a"}, "is no URL"), (None, {"url": "http://h:x/a"}, "is no URL"),
])
def test_what_a_retry_cannot_fix_gets_one_line(
        project, server, capsys, answer, fields, message):
    server.answer = answer
    project.list(project.entry("b", **fields), project.entry())
    status, lines, _ = run(capsys, "b")
    assert status == 1 and len(lines) == 1 and message in lines[0], lines
    assert lines[0].startswith("error: b: ") and not project.waits
    assert not project.fetched.exists() or "b.bin" not in left(project)
    server.answer = lambda handler, start: handler.give()
    status, lines, _ = run(capsys, "--check", "b")
    assert status == 1
    assert run(capsys, "a")[0] == 0


def test_what_fails_does_not_stop_the_others(project, server, capsys):
    server.answer = lambda handler, start: (
        handler.send(404) if handler.path == "/b" else handler.give())
    project.list(project.entry("b"), project.entry(colour="red"), project.entry("c"))
    status, lines, _ = run(capsys, "b", "a", "nobody", "c")
    assert status == 1 and left(project) == ["c.bin"] and len(lines) == 4
    assert "unexpected keyword argument 'colour'" in lines[1] and "lists no nobody" in lines[2]


def test_a_redirect_is_followed_but_not_away_from_https(project, server, capsys):
    server.answer = lambda handler, start: (
        handler.give(start) if handler.path == "/there" else handler.send(302, Location="/there"))
    project.list(project.entry())
    begun(project, CONTENT[:1000])
    assert run(capsys, "a")[0] == 0 and project.file.read_bytes() == CONTENT
    assert server.requests[-1][:2] == ("/there", "bytes=1000-")
    request = transfer.urllib.request.Request("https://a/b")
    for url in ("http://a/b", "ftp://a/b"):
        with pytest.raises(UserError, match="is not https"):
            transfer._Redirects(False).redirect_request(request, None, 302, "", {}, url)
    assert transfer._Redirects(False).redirect_request(request, None, 302, "", {}, "https://c/d")


def test_http_needs_insecure(project, capsys):
    project.list(project.entry())
    assert download.main(["a"]) == 1
    line, = capsys.readouterr().err.splitlines()
    assert "is not https and was not fetched; --insecure fetches it" in line
    assert run(capsys, "a")[0] == 0


def test_too_little_space(project, server, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=200_000))
    project.list(project.entry(size=None))
    status, lines, _ = run(capsys, "a")
    assert status == 1 and len(lines) == 1 and "a.bin needs 0.3 MB in " in lines[0]
    assert "0.2 MB are free; free some space" in lines[0] and left(project) == []
    project.fetched.rmdir()
    begun(project, CONTENT[:150_000])
    assert run(capsys, "a")[0] == 0  # the rest fits


def test_a_disk_that_is_full_after_all(project, server, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(transfer, "check_space", full)
    project.list(project.entry(), project.entry("b"))
    status, lines, _ = run(capsys, "a", "b")
    assert status == 1 and len(lines) == 2 and "No space left" in lines[0] and not left(project)


# --- what is no checkpoint ----------------------------------------------------------------------

PAGE = b"\xef\xbb\xbf\n<!DOCTYPE html><html><title>Sign in</title></html>"


@pytest.mark.parametrize("name, content, message", [
    ("a.bin", PAGE, "is a web page"),
    ("a.safetensors", PAGE, "is a web page"),
    ("vocab.txt", b"<html><body>not found</body></html>", "is a web page"),
    ("a.pth", b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>", "is a web page"),
    ("a.pt", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git-LFS pointer"),
    ("a.bin", b'{"error": "quota exceeded"}', "is not a checkpoint"),
    ("a.safetensors", b"PK\3\4" + bytes(99), "is not a checkpoint"),
    ("names.json", b"Not found", "is not JSON"),
    ("a.bin", b"", "is an empty file"),
])
def test_what_is_no_checkpoint_is_neither_kept_nor_recorded(
        project, server, capsys, tmp_path, name, content, message):
    server.answer = lambda handler, start: handler.give(content=content)
    if not content:
        server.answer = lambda handler, start: handler.send(200)
    project.list(project.entry(file=name, size=None, sha256=None))
    status, lines, _ = run(capsys, "a")
    assert status == 1 and len(lines) == 1 and message in lines[0], lines
    assert left(project) == [] and not (project.folder / "checkpoints.lock.json").exists()
    (project.fetched / name).write_bytes(content)  # saved by hand, or by an older version
    status, _, out = run(capsys, "--check", "a")
    assert status == 1 and message in out
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        download.main(["--record", str(tmp_path / name), "--url", "https://a/b"])
    server.answer = lambda handler, start: handler.give(
        start, content=b"{}" if name.endswith("json") else CONTENT)
    assert run(capsys, "a")[0] == 0 and left(project) == [name]
    assert (project.folder / "checkpoints.lock.json").exists()


def test_a_web_page_in_the_place_of_a_listed_file_is_called_one(project, server, capsys):
    server.answer = lambda handler, start: handler.give(content=PAGE)
    project.list(project.entry(size=None))
    status, lines, _ = run(capsys, "a")
    assert status == 1 and "is a web page; it was not kept" in lines[0] and left(project) == []


def in_a_tar(tensors, path):
    with tarfile.open(path, "w") as archive:
        archive.add(__file__, "storages")


@pytest.mark.parametrize("write", [
    torch.save, partial(torch.save, _use_new_zipfile_serialization=False), in_a_tar, save_file,
    lambda tensors, path: path.write_bytes(pickle.dumps({"a": 1}, protocol=4)),
])
def test_every_kind_of_checkpoint_passes(tmp_path, write):
    write({"a": torch.zeros(3)}, tmp_path / "a.bin")
    assert content.problem_with_content(tmp_path / "a.bin", ".bin") is None


def test_a_lock_that_is_wrong_is_named_with_what_to_do(project, server, capsys):
    """Another version of the project may have recorded a web page."""
    project.list(project.entry(size=None, sha256=None))
    lock = project.folder / "checkpoints.lock.json"
    lock.write_text(json.dumps({project.entry()["url"]: {
        "size": len(PAGE), "sha256": hashlib.sha256(PAGE).hexdigest()}}))
    for _ in range(2):
        status, lines, _ = run(capsys, "a")
        assert status == 1 and str(lock) in lines[-1] and "take the entry" in lines[-1]
        project.fetched.mkdir(exist_ok=True)
        project.file.write_bytes(CONTENT)
    assert str(lock) in run(capsys, "--check", "a")[2]


# --- several at once, and stopping --------------------------------------------------------------


def test_two_downloads_of_one_file(project, server, capsys):
    asked, go_on = threading.Event(), threading.Event()

    def answer(handler, start):
        asked.set()
        go_on.wait(10)
        handler.give(start)

    server.answer = answer
    project.list(project.entry(size=None, sha256=None))
    results = []
    threads = [threading.Thread(target=lambda: results.append(download.main(
        ["a", "--insecure"]))) for _ in range(3)]
    threads[0].start()
    asked.wait(10)
    for thread in threads[1:]:
        thread.start()
    go_on.set()
    for thread in threads:
        thread.join(20)
    assert results == [0, 0, 0] and len(server.requests) == 1
    assert project.file.read_bytes() == CONTENT and left(project) == ["a.bin"]
    assert [path.name for path in project.folder.iterdir() if path.name.startswith(".")] == []


def test_a_lock_of_a_process_that_died_is_not_waited_for(project, capsys):
    project.list(project.entry())
    project.fetched.mkdir()
    (project.fetched / ".a.bin.lock").touch()
    assert run(capsys, "a")[0] == 0 and left(project) == ["a.bin"]


def bash(script, *words, cwd, **options):
    path = os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]
    return subprocess.Popen(["bash", str(script), *words], cwd=cwd, text=True,
                            env={**os.environ, "PATH": path}, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, **options)


def copied_project(project, folder):
    copy_project(folder)
    shutil.copytree(project.folder, folder / "ckpt", dirs_exist_ok=True)
    return folder


def test_ctrl_c_keeps_what_came_and_bash_goes_on(project, server, capsys, tmp_path):
    half, end = threading.Event(), threading.Event()

    def answer(handler, start):
        handler.send(200, CONTENT[:100_000], Content_Length=len(CONTENT), ETag='"1"')
        half.set()
        end.wait(20)

    server.answer = answer
    project.list(project.entry(), p1="a")
    home = copied_project(project, tmp_path / "my project")
    part = home / "ckpt" / "fetched" / "a.bin.part"
    # Where the tests run in the background, a shell has made them deaf to Ctrl-C.
    process = bash(home / "download_ckpt.sh", "--insecure", cwd=tmp_path,
                   preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    assert half.wait(60)
    while not part.exists() or not part.stat().st_size:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=60)[1]
    end.set()
    assert process.returncode == 130 and "Traceback" not in err
    assert "interrupted; what came so far is kept" in err.splitlines()[-1]
    assert sorted(path.name for path in part.parent.iterdir()) == [part.name, part.name + ".json"]

    server.answer = lambda handler, start: handler.give(start, ETag='"1"')
    process = bash(home / "hw3_download.sh", "--insecure", cwd=tmp_path)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 0, err
    assert part.with_suffix("").read_bytes() == CONTENT and server.requests[-1][1] is not None


# --- no network ---------------------------------------------------------------------------------


def test_without_a_network_one_line_says_so(project, capsys, monkeypatch):
    def nobody(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nobody)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(project.folder / "cache"))
    (project.folder / "s.bin").write_bytes(CONTENT)
    project.list(project.entry(url="https://example.org/a"),
                 project.entry("s", url=None, shipped=True),
                 {"name": "m", "hub": "owner/model", "files": ["config.json"]})
    status, lines, _ = run(capsys, "--all")
    assert status == 1 and not project.waits
    assert lines == [
        f"s: matches the list: {project.folder / 's.bin'}",
        "error: not available now: a, m (Name or service not known); try again when there is a "
        f"network. The checkpoints that ship in {project.folder} still work"]


def test_a_server_that_is_not_there_is_tried_again(project, server, capsys):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    project.list(project.entry(url=f"http://127.0.0.1:{port}/a"))
    status, lines, _ = run(capsys, "a")
    assert status == 1 and project.waits == [1, 2, 4]
    assert len(lines) == 1 and "(Connection refused); try again" in lines[0]


# --- models of the hub --------------------------------------------------------------------------


@pytest.fixture
def hub(project, monkeypatch):
    """A hub of one model, and its cache: large files under their SHA-256, small under git's."""
    cache = project.folder.parent / "cache"
    files = {"config.json": b"{}", "model.safetensors": CONTENT, "pytorch_model.bin": OTHER,
             "README.md": b"hello"}
    calls = []

    def model_info(self, repo, **_):
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name, size=len(content))
                                         for name, content in files.items()])

    def snapshot_download(repo, revision=None, allow_patterns=(), force_download=False):
        calls.append((sorted(allow_patterns), force_download))
        root = cache / ("models--" + repo.replace("/", "--"))
        for folder in ("refs", "blobs", "snapshots/1"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        (root / "refs" / "main").write_text("1")
        for name in allow_patterns:
            content = files[name]
            as_git = b"blob %d\0" % len(content) + content
            blob = root / "blobs" / (hashlib.sha256(content) if len(content) > 100 else
                                     hashlib.sha1(as_git)).hexdigest()
            blob.write_bytes(content)
            link = root / "snapshots" / "1" / name
            link.unlink(missing_ok=True)
            link.symlink_to(os.path.relpath(blob, link.parent))
        return str(root / "snapshots" / "1")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    return SimpleNamespace(cache=cache, files=files, calls=calls)


def test_a_model_of_the_hub_goes_into_its_cache(project, hub, capsys):
    project.list({"name": "m", "hub": "owner/model", "licence": "MIT", "use": "a test", "files": [
        "config.json", "tokenizer.json|", "model.safetensors|pytorch_model.bin"]})
    assert "m (not here)" in run(capsys, "--list")[2] and run(capsys, "--check", "m")[0] == 1
    assert run(capsys, "m")[0] == 0 and run(capsys, "m")[0] == 0
    assert hub.calls == [(["config.json", "model.safetensors"], False)]
    assert "m (here)\n    a test\n    from owner/model\n    licence: MIT" in run(
        capsys, "--list")[2]
    for name in ("config.json", "model.safetensors"):
        file, = hub.cache.rglob(name)
        file.resolve().write_bytes(b"something else")
        status, _, out = run(capsys, "--check")
        assert status == 1 and f"m: is damaged ({file}); bash download_ckpt.sh m fetches it" in out
        assert run(capsys, "m")[0] == 0 and hub.calls[-1][1] and run(capsys, "--check")[0] == 0


def test_a_model_that_is_not_available(project, hub, capsys, monkeypatch):
    project.list({"name": "m", "hub": "owner/model", "files": ["vocab.txt"]},
               {"name": "n", "hub": "owner/model", "files": ["config.json"]},
               {"name": "bad", "hub": "no/such/name", "files": ["config.json"]})
    status, lines, _ = run(capsys, "m", "bad")
    assert status == 1 and "error: m: owner/model has no vocab.txt; correct" in lines[0]
    assert "error: bad: no/such/name is no name on the hub" in lines[1]
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1))
    status, lines, _ = run(capsys, "n")
    assert status == 1 and "free some space" in lines[0] and not hub.calls


# --- the list -----------------------------------------------------------------------------------


@pytest.mark.parametrize("fields, message", [
    *(({"file": name}, "is no plain file name") for name in (
        "../x", "..", ".", "/etc/x", "a/b", "a\\b", ".hidden", "x.part", "x.part.json")),
    ({"file": "x\n"}, "text of one line"), ({"file": 7}, "text of one line"),
    ({"file": None, "url": "https://a/"}, "is no plain file name"),
    ({"shipped": True}, "either"), ({"url": None}, "either"), ({"hub": "a/b"}, "either"),
    ({"size": "7"}, "number of bytes"), ({"size": -1}, "number of bytes"),
    ({"size": True}, "number of bytes"), ({"sha256": "0"}, "64 hexadecimal"),
    ({"hub": "a/b", "url": None}, '"files" says'), ({"files": 7}, '"files" must be a list'),
    ({"needs": "base"}, '"needs" must be a list'),
    ({"file": "b.bin"}, "b has the same file"), ({"sha-256": SHA256}, "unexpected keyword"),
])
def test_an_entry_that_is_not_as_it_should_be_is_refused(project, server, capsys, fields, message):
    project.list(project.entry(**fields), project.entry("b"))
    for words in ((), ("--check",), ("--list",)):
        status, lines, out = run(capsys, *words, "a")
        assert status == 1 and message in (lines or [out])[0]
    assert not server.requests and not project.fetched.exists()
    assert [path.name for path in project.folder.parent.iterdir()] == ["ckpt"]


@pytest.mark.parametrize("text, message", [
    ("{", "is not valid JSON"), ("[]", 'must hold "checkpoints"'), ("{}", "must hold"),
    ('{"checkpoints": [7], "defaults": {}}', "must hold"),
    ('{"checkpoints": [{"name": "a"}, {"name": "a"}], "defaults": {}}', "lists a twice"),
    ('{"checkpoints": [], "defaults": {"p3": "a"}}', "no default p3, only p1, p2"),
])
def test_a_list_that_cannot_be_read(project, capsys, text, message):
    (project.folder / "checkpoints.json").write_text(text)
    for words in ([], ["--list"], ["--check"], ["--record", __file__, "--url", "https://a/b"]):
        with pytest.raises(UserError, match=message):
            download.main(words)


def test_the_projects_own_list(capsys):
    entries, defaults = registry.read_list()
    found = {name: registry.find(entries, name) for name in entries}
    shipped = {entry.file for entry in found.values() if entry.shipped}
    assert shipped == {path.name for path in registry.FOLDER.glob("*.safetensors")}, (
        "bash download_ckpt.sh --record ckpt/FILE")
    assert all(entry.licence and entry.use for entry in found.values())
    assert all(entry.url is None or entry.url.startswith("https://") for entry in found.values())
    names = [name for name, entry in found.items() if entry.shipped]
    assert download.main(["--check", *names]) == 0
    assert all(": matches the list: " in line for line in capsys.readouterr().out.splitlines())
    assert download.main(["--list"]) == 0
    out = capsys.readouterr().out
    assert all(f"{name} (" in out for name in entries)
    assert "pets_vit_tiny (ships, 11.1 MB, default of p1)\n    tells 37 breeds" in out


# --- which checkpoint an entry point uses -------------------------------------------------------


def test_a_default_is_the_variables_the_lists_or_the_one_that_ships(project, monkeypatch):
    for variable in set(registry.VARIABLES.values()):
        monkeypatch.delenv(variable, raising=False)
    assert registry.default("p1") == project.folder / "pets_vit_tiny.safetensors"
    hub = {"name": "m", "hub": "a/b", "files": ["x"]}
    project.list(project.entry(), project.entry("s", url=None, shipped=True), hub,
               p1="a", p2="s", clip="m", p2_peft="nobody")
    assert registry.default("p1") == project.file
    assert registry.default("p2") == project.folder / "s.bin"
    with pytest.raises(UserError, match="the default clip is m, a model on the hub"):
        registry.default("clip")
    with pytest.raises(UserError, match="lists no nobody"):
        registry.default("p2_peft")
    monkeypatch.setenv("HW3_P2_CKPT", "mine.safetensors")
    assert registry.default("p2") == registry.default("p2_peft") == Path("mine.safetensors")


def test_the_scripts_ask_for_it(monkeypatch):
    import clip_zeroshot
    import p1_vit_classify
    import p2_caption

    for variable in set(registry.VARIABLES.values()):
        monkeypatch.setenv(variable, f"{variable} file")
    for module, words, option in (
            (p1_vit_classify, ["predict", "--output", "x"], "HW3_P1_CKPT"),
            (p2_caption, ["predict", "--output", "x"], "HW3_P2_CKPT"),
            (clip_zeroshot, ["predict", "--images", "x", "--labels", "x", "--output", "x"],
             "HW3_CLIP_CKPT")):
        args = module.make_parser().parse_args(words)
        if module is p2_caption:
            complete_captioner_options(args)
        chosen = getattr(args, "checkpoint", None) or args.model
        assert chosen in (f"{option} file", [f"{option} file"])


def test_a_student_publishes_and_a_ta_fetches(project, server, capsys, tmp_path):
    project.list(project.entry("b", sha256=None, size=None))
    mine = tmp_path / "best.safetensors"
    mine.write_bytes(CONTENT)
    url = project.entry()["url"]
    status, lines, _ = run(capsys, "--record", mine, "--name", "mine", "--url", url, "--default",
                           "p1", "--licence", "CC0", "--use", "my homework")
    assert status == 0 and "commit it" in lines[0]
    mine.unlink()
    assert run(capsys)[0] == 0
    assert registry.default("p1") == project.fetched / "mine.safetensors"
    assert registry.default("p1").read_bytes() == CONTENT
    out = run(capsys, "--list")[2]
    assert f"mine (here, 0.3 MB, default of p1)\n    my homework\n    from {url}\n" in out
    (project.folder / "new.safetensors").write_bytes(OTHER)
    assert run(capsys, "--record", project.folder / "new.safetensors")[0] == 0
    assert run(capsys, "--record", project.fetched / "mine.safetensors", "--name", "b")[0] == 0
    assert run(capsys, "--check", "new", "mine")[0] == 0
    entries, _ = registry.read_list()
    assert entries["new"]["shipped"] and entries["b"]["sha256"] == SHA256
    mine.write_bytes(CONTENT)
    for words in (["--record", mine], ["--record", tmp_path / "no"],
                  ["--record", mine, "--url", "ftp://a/b"]):
        before = registry.list_path().read_text()
        with pytest.raises(UserError):
            download.main(list(map(str, words)))
        assert registry.list_path().read_text() == before


@pytest.mark.parametrize("words", [
    ["--all", "a"], ["a", "--record", "x"], ["--list", "--check"], ["--url", "https://a/b"],
    ["--default", "p3", "--record", "x"], ["--frist"]])
def test_wrong_usage(project, capsys, words):
    status, lines, _ = run(capsys, *words)
    assert status == 2 and len(lines) == 1 and "--help" in lines[0]


@pytest.mark.parametrize("script", ["download_ckpt.sh", "hw3_download.sh"])
def test_the_shell_scripts_keep_the_courses_rules(script):
    text = "\n".join(line.split("#")[0] for line in (ROOT / script).read_text().splitlines())
    words = set(text.replace(";", " ").split())
    assert not words & {"rm", "sudo", "cp", "mv", "mkdir", "cd", "pip", "pip3"}
    assert "CUDA_VISIBLE_DEVICES" not in text and words & {"python3", "bash"}
