"""Streams, exit statuses, and files that are written whole, in small scripts of their own."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import utils
from utils import UserError, read_json, read_text, whole_file, write_text

import numpy as np
import pytest
from conftest import ROOT, finished

from data.files import (
    check_outputs,
    check_writable,
    read_csv,
    read_lines,
    read_mapping,
    write_csv,
)
from inference.parser import natural, positive_int, power


@pytest.fixture
def script(tmp_path):
    """A function that writes a script beside a copy of utils.py and returns its command."""
    shutil.copy(ROOT / "utils.py", tmp_path)

    def write(body: str, top: str = "") -> str:
        lines = "".join(f"    {line}\n" for line in body.splitlines())
        (tmp_path / "script.py").write_text(
            "import sys\nfrom utils import *\nfrom utils import run\n"
            f"{top}\ndef main():\n{lines}\nrun(main)\n")
        return f"{sys.executable} {tmp_path / 'script.py'}"

    return write


def shell(command, **environment):
    return finished("bash", "-c", command, **environment)


# --- streams ------------------------------------------------------------------------------------

WORK = """
with progress(3, "work", "img") as bar:
    for number in range(3):
        warn(f"step {number} …")
        bar.update(1)
write_text(sys.argv[1], "done")
print("a … b")
return 3
"""


@pytest.mark.parametrize("redirection", [
    "2>&-", ">&-", ">&- 2>&-", "<&- >&- 2>&-", "2>/dev/full", "2> >(true)", ""])
def test_the_work_is_done_whatever_becomes_of_the_streams(script, tmp_path, redirection):
    result = shell(f"{script(WORK)} {tmp_path / 'o.txt'} {redirection}")
    assert result.returncode == 3 and (tmp_path / "o.txt").read_text() == "done", result.stderr
    assert "Traceback" not in result.stderr and "Exception" not in result.stderr


def test_a_warning_does_not_stand_in_a_progress_bar(script, tmp_path):
    result = shell(f"{script(WORK)} {tmp_path / 'o.txt'}")
    lines = result.stderr.replace("\r", "\n").splitlines()
    assert [line for line in lines if "step" in line] == ["step 0 …", "step 1 …", "step 2 …"]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_stream_that_cannot_show_a_character_escapes_it(script, tmp_path, encoding):
    result = shell(f"{script(WORK)} {tmp_path / 'o.txt'}", PYTHONIOENCODING=encoding)
    assert result.returncode == 3 and result.stdout == "a \\u2026 b\n", result.stderr
    assert "step 2 \\u2026" in result.stderr


def test_nothing_that_a_library_prints_gets_into_a_file_of_ours(script, tmp_path):
    """Without the null device, the first file that is opened would be number 2."""
    body = """
with open(sys.argv[1], "w") as file:
    with contextlib.suppress(OSError):
        os.write(2, b"a warning from C")
    file.write("result")
"""
    command = script(body, "import contextlib, os")
    assert shell(f"{command} {tmp_path / 'o.txt'} 2>&-").returncode == 0
    assert (tmp_path / "o.txt").read_text() == "result"


def test_what_belongs_on_a_closed_stdout_is_not_lost(script):
    result = shell(f"{script('write_json(dict(accuracy=1))')} >&-")
    assert result.returncode == 0
    assert result.stderr == ('stdout is closed; what belongs there comes here\n'
                             '{\n  "accuracy": 1\n}\n')


def test_a_second_sigterm_does_not_disturb_what_the_first_ends(script):
    """`timeout` sends it to the process and then to its group."""
    top = """
import os, utils
def again(status, line):
    os.kill(os.getpid(), 15)
    return status
utils.at_end = again
"""
    result = shell(script("os.kill(os.getpid(), 15)", top))
    assert result.returncode == 143
    assert result.stderr == "stopped by SIGTERM; nothing half-written is left\n"


def test_a_stdout_that_is_full_is_one_error(script):
    result = shell(f"{script('print(1)')} >/dev/full")
    assert result.returncode == 1 and result.stderr == "error: No space left on device\n"


# --- Ctrl-C, and packages that are missing, before main -----------------------------------------


@pytest.mark.parametrize("body", [
    "time.sleep(60)",
    "try:\n    time.sleep(60)\nexcept BaseException:\n    raise ImportError('numpy') from None",
])
def test_ctrl_c_while_a_script_starts_is_one_line(script, tmp_path, body):
    """The second: numpy makes an ImportError of a Ctrl-C that comes during its own imports."""
    (tmp_path / "slow.py").write_text(
        f"import time\nprint('importing', flush=True)\n{body}\n")
    script("pass", "import slow")
    process = subprocess.Popen(
        [sys.executable, tmp_path / "script.py"], text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and err == "interrupted; nothing half-written is left\n"


def test_ctrl_c_in_main_ends_what_is_open(script, tmp_path):
    body = f"""
signal.signal(signal.SIGINT, signal.default_int_handler)
with whole_file({str(tmp_path / 'o.txt')!r}) as path:
    path.write_text("half")
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
"""
    before = set(tmp_path.iterdir())
    result = shell(script(body, "import os, signal, time"))
    assert result.returncode == 130
    assert result.stderr == "interrupted; nothing half-written is left\n"
    assert {path.name for path in set(tmp_path.iterdir()) - before} <= {"script.py", "__pycache__"}


def test_importing_utils_from_elsewhere_leaves_ctrl_c_alone():
    code = ("import signal; before = signal.getsignal(2); import utils; "
            "print(signal.getsignal(2) is before)")
    result = finished(sys.executable, "-c", code, PYTHONPATH=str(ROOT), cwd="/")
    assert result.stdout == "True\n", result.stderr


# --- outputs that are no plain files ------------------------------------------------------------


@pytest.fixture
def writer(script):
    return script("print('before')\nwrite_text(sys.argv[1], 'text\\n')\nprint('after')")


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "link"])
def test_stdout_as_an_output_is_the_open_descriptor(writer, tmp_path, name):
    os.symlink("/dev/stdout", tmp_path / "link")
    name = tmp_path / "link" if name == "link" else name
    kept = tmp_path / "kept"
    kept.write_text("what was there\n")
    assert shell(f"{writer} {name} >> {kept}").returncode == 0
    assert kept.read_text() == "what was there\nbefore\ntext\nafter\n"
    assert shell(f"{writer} {name} > {kept}").returncode == 0
    assert kept.read_text() == "before\ntext\nafter\n"
    assert shell(f"{writer} {name} | cat").stdout == "before\ntext\nafter\n"
    assert (tmp_path / "link").is_symlink()


def test_a_pipe_of_the_shell_and_a_named_one(writer, tmp_path):
    got = tmp_path / "got"
    assert shell(f"{writer} >(cat > {got}); wait $!").returncode == 0
    assert got.read_text() == "text\n"
    os.mkfifo(tmp_path / "pipe")
    assert shell(f"cat {tmp_path / 'pipe'} & {writer} {tmp_path / 'pipe'} > /dev/null; wait"
                 ).stdout == "text\n"
    assert shell(f"{writer} /dev/null").returncode == 0 and os.path.exists("/dev/null")


def test_what_needs_to_go_back_in_a_file_can_be_piped(script):
    """A zip archive and a PNG are written by seeking."""
    body = """
with whole_file("/dev/stdout") as path, zipfile.ZipFile(path, "w") as archive:
    archive.writestr("a", "text")
"""
    result = subprocess.run(script(body, "import zipfile").split(), stdout=subprocess.PIPE)
    with tempfile.TemporaryFile() as file:
        file.write(result.stdout)
        assert zipfile.ZipFile(file).read("a") == b"text"


def test_a_device_that_is_full_keeps_the_result(script):
    result = shell(script("write_text('/dev/full', 'text')"))
    line, place = result.stderr.strip().split("; what belongs there is in ")
    assert result.returncode == 1 and line == (
        "error: cannot write /dev/full: No space left on device")
    assert Path(place).read_text() == "text"
    Path(place).unlink()


# --- files that cannot be replaced --------------------------------------------------------------


@pytest.fixture
def output(tmp_path):
    file = tmp_path / "folder" / "o.txt"
    write_text(file, "old")
    return file


def test_a_mount_point_is_overwritten(output, monkeypatch):
    """A file that is mounted into a container: renaming over it fails, writing does not."""
    def busy(*_):
        raise OSError(errno.EBUSY, "Device or resource busy")

    number = output.stat().st_ino
    check_writable(output)
    monkeypatch.setattr(Path, "replace", busy)
    write_text(output, "new")
    assert output.read_text() == "new" and output.stat().st_ino == number
    with pytest.raises(RuntimeError), whole_file(output) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert output.read_text() == "new" and os.listdir(output.parent) == ["o.txt"]


def test_a_file_in_a_closed_folder_is_overwritten(output, monkeypatch):
    make = tempfile.mkstemp

    def closed(suffix=None, prefix=None, dir=None):
        if dir == output.parent:
            raise PermissionError(errno.EACCES, "Permission denied")
        return make(suffix, prefix, dir)

    monkeypatch.setattr(tempfile, "mkstemp", closed)
    check_writable(output)
    write_text(output, "new")
    assert output.read_text() == "new"
    with pytest.raises(PermissionError):  # a new file has no place there
        write_text(output.with_name("other"), "new")


def test_a_result_that_cannot_be_put_in_its_place_is_kept(output, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(UserError, match="No space left on device; what belongs there") as problem:
        write_text(output, "new")
    assert Path(str(problem.value).rpartition(" ")[2]).read_text() == "new"


@pytest.mark.parametrize("error, free, message", [
    (OSError(errno.ENOSPC, "No space left on device"), 1 << 40, "No space left on device"),
    (OSError(errno.EDQUOT, "Disk quota exceeded"), 1 << 40, "Disk quota exceeded"),
    (RuntimeError("I/O error: File too large (os error 27)"), 1 << 40, "File too large"),
    (RuntimeError("PytorchStreamWriter failed writing file data/0"), 4096, "No space left"),
])
def test_a_full_disk_is_named_with_the_file(output, monkeypatch, error, free, message):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(0, 0, free))
    with pytest.raises(UserError, match=f"cannot write .*o.txt: {message}.*; make room there"):
        with whole_file(output) as temporary:
            temporary.write_text("half")
            raise error
    assert output.read_text() == "old" and os.listdir(output.parent) == ["o.txt"]


def test_another_error_on_a_full_disk_keeps_its_words(output, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(0, 0, 0))
    with pytest.raises(UserError, match="^a label is missing$"), whole_file(output):
        raise UserError("a label is missing")


# --- outputs that are refused before the work ---------------------------------------------------


@pytest.fixture
def given(tmp_path, monkeypatch):
    """Files that a command reads: a table, a link and a hard link to it, and a folder."""
    monkeypatch.chdir(tmp_path)
    Path("labels.csv").write_text("labels")
    os.symlink("labels.csv", "link.csv")
    os.link("labels.csv", "hard.csv")
    Path("model").mkdir()
    Path("model/config.json").write_text("{}")
    os.symlink("loop", "loop")
    return tmp_path


@pytest.mark.parametrize("outputs, inputs, message", [
    ({"--output": "labels.csv"}, {"--labels": "labels.csv"},
     "--output labels.csv would replace a file that --labels names; give another --output"),
    ({"--output": "./model/../labels.csv"}, {"--labels": "labels.csv"}, "that --labels names"),
    ({"--output": "link.csv"}, {"--labels": "labels.csv"}, "that --labels names"),
    ({"--output": "labels.csv"}, {"--labels": "link.csv"}, "that --labels names"),
    ({"--output": "hard.csv"}, {"--labels": "labels.csv"}, "that --labels names"),
    ({"--output": "/dev/fd/987"}, {}, "cannot write /dev/fd/987: Bad file descriptor"),
    ({"--output": "model/config.json"}, {"--model": "model"}, "that --model names"),
    ({"--npz": None, "--output": ["new", "labels.csv"]},
     {"--labels": None, "--images": [Path("model/config.json"), Path("labels.csv")]},
     "that --images names"),
    ({"--output": "new.csv", "--table": "./new.csv"}, {}, "--table new.csv would replace a file"),
    ({"--output": "new.csv", "--table": "model/../new.csv"}, {}, "that --output names"),
    ({"--output": "model"}, {}, "model is a folder; give a file as --output"),
    ({"--output": "labels.csv/o.csv"}, {}, "cannot write labels.csv/o.csv: "),
    ({"--output": "loop"}, {}, "cannot write loop: Too many levels of symbolic links; choose"),
    ({"--output": "x" * 300}, {}, "File name too long"),
])
def test_outputs_that_are_refused(given, outputs, inputs, message):
    before = {path: path.read_bytes() for path in given.rglob("*") if path.is_file()}
    with pytest.raises(UserError) as problem:
        check_outputs(outputs, inputs)
    assert message in str(problem.value)
    assert {path: path.read_bytes() for path in given.rglob("*") if path.is_file()} == before


def test_outputs_that_are_fine(given):
    check_outputs({"--output": "labels.csv", "--table": "new/t.md", "--npz": None}, {
        "--model": "model", "--images": [], "--labels": None, "--hub": "openai/clip"})
    check_outputs({"--output": "/dev/null", "--table": "/dev/null"}, {"--labels": "/dev/null"})
    check_outputs({"--output": "model/result.json"}, {"--model": "model"})
    check_outputs({"--output": "/dev/stderr", "--table": "/dev/stderr"}, {})


def test_stdout_that_ends_in_an_input_is_refused(tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text("labels")
    code = ("from data.files import check_outputs; "
            f"check_outputs({{'--output': '/dev/stdout'}}, {{'--labels': {str(table)!r}}})")
    result = shell(f"{sys.executable} -c \"{code}\" >> {table}", PYTHONPATH=str(ROOT))
    assert result.returncode == 1 and "would replace a file that --labels names" in result.stderr
    assert table.read_text() == "labels"


def test_a_closed_stdout_is_no_output(tmp_path):
    code = ("from utils import run; from data.files import check_writable; "
            "run(lambda: check_writable('/dev/stdout', '--output'))")
    result = shell(f'{sys.executable} -c "{code}" >&-', PYTHONPATH=str(ROOT))
    assert result.returncode == 1 and "cannot write /dev/stdout: Bad file" in result.stderr


# --- text ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_text_is_read_as_people_save_it(tmp_path, encoding, line_end):
    file = tmp_path / "file"

    def save(*lines):
        file.write_bytes(line_end.join([*lines, ""]).encode(encoding))
        return file

    assert read_text(save("é")) == f"é{line_end}"
    assert read_lines(save("a {}", "", "b\u2028c\x85")) == ["a {}", "", "b\u2028c\x85"]
    assert read_json(save('{"é": 1}')) == {"é": 1}
    assert read_csv(save("filename,label", 'a.jpg,"x\ny"', "b.jpg"), "filename", "label") == [
        {"filename": "a.jpg", "label": "x\ny"}, {"filename": "b.jpg", "label": ""}]


def test_an_empty_file_has_no_lines(tmp_path):
    (tmp_path / "file").write_text("")
    assert read_lines(tmp_path / "file") == []


def test_names_that_are_not_utf_8_survive_a_table(tmp_path):
    name = os.fsdecode(b"caf\xe9.jpg")
    write_csv(tmp_path / "t.csv", ["filename", "label"], [[name, "1"]])
    assert read_mapping(tmp_path / "t.csv", "filename", "label") == {name: "1"}


@pytest.mark.parametrize("content, message", [
    (b"filename,label\na.jpg,1\nb.jpg,2\na.jpg,3\n",
     "gives a.jpg twice, with label 1 and with label 3; keep the right one"),
    (b"filename,label,label\na.jpg,1,2\n", "needs the header filename,label, each of them once"),
    (b"filename\na.jpg\n", "needs the header filename,label"),
    (b"", "needs the header filename,label"),
    (b"filename,label\n" + b"x" * 200_000 + b",1\n", "is not a CSV file: field larger"),
])
def test_tables_that_are_refused(tmp_path, content, message):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_mapping(tmp_path / "t.csv", "filename", "label")


def test_the_same_value_twice_is_one(tmp_path):
    (tmp_path / "t.csv").write_text("filename,label\na.jpg,1\na.jpg,1\n")
    assert read_mapping(tmp_path / "t.csv", "filename", "label") == {"a.jpg": "1"}


def test_a_key_twice_in_json_is_refused(tmp_path):
    (tmp_path / "a.json").write_text('{"a.jpg": "a dog", "a.jpg": "a cat"}')
    with pytest.raises(UserError, match="the key a.jpg stands twice"):
        read_json(tmp_path / "a.json")


# --- numbers on command lines -------------------------------------------------------------------


@pytest.mark.parametrize("kind, good, bad", [
    (power, ["0", "0.8", "100"], ["1e308", "-1", "nan", "inf", "x"]),
    (positive_int, ["1", "2147483647"], ["0", "99999999999999999999", "9" * 5000, "1.5", ""]),
    (natural, ["0", "7"], ["-1", "1e3", "9" * 30]),
])
def test_numbers_that_nothing_could_be_computed_with_are_refused(kind, good, bad):
    assert [kind(text) for text in good]
    for text in bad:
        with pytest.raises(utils.argparse.ArgumentTypeError, match="must be a"):
            kind(text)
    largest = 1024 ** kind("100")  # a caption's length to the power of --length-penalty
    assert np.isfinite(float(largest))
