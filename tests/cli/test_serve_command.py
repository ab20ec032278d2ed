"""``zeroline serve`` as a command: what it refuses before it starts, where it listens, and how it ends."""

import os
import signal
import socket
import subprocess
import sys

import pytest

from cli.test_cli import run
from web.serving import free_port
from zeroline.cli import serve as command
from zeroline.web.limits import Limits


def test_help_names_every_limit_and_the_address_that_is_usual(capsys):
    status, out, _ = run(capsys, "serve", "--help")
    assert status == 0
    for option in ("--host", "--port", "--model-folder", "--max-megabytes", "--max-megapixels", "--max-letters", "--max-seconds", "--max-waiting"):
        assert option in out
    assert "127.0.0.1" in out
    assert "reached from this machine alone" in " ".join(out.split())


def test_nothing_said_means_this_machine_and_the_usual_limits(capsys, monkeypatch):
    given = {}
    monkeypatch.setattr(command, "run", lambda **words: given.update(words))
    assert run(capsys, "serve")[0] == 0
    assert (given["host"], given["port"], list(given["folders"]), given["limits"]) == ("127.0.0.1", 7860, [], Limits())
    given["ready"]("http://[bold]x[/bold]")
    assert capsys.readouterr().out == "http://[bold]x[/bold]  (Ctrl-C ends it)\n"


def test_every_limit_is_handed_on_to_its_place(capsys, monkeypatch, tmp_path):
    given = {}
    monkeypatch.setattr(command, "run", lambda **words: given.update(words))
    limits = ["--max-megabytes", "1.5", "--max-megapixels", "2.5", "--max-letters", "3", "--max-seconds", "4.5", "--max-waiting", "5"]
    folders = ["--model-folder", tmp_path / "a", "--model-folder", tmp_path / "b"]
    assert run(capsys, "serve", "--host", "0.0.0.0", "--port", "1234", *limits, *folders)[0] == 0
    assert given["limits"] == Limits(megabytes=1.5, megapixels=2.5, letters=3, seconds=4.5, waiting=5)
    assert (given["host"], given["port"], given["folders"]) == ("0.0.0.0", 1234, [tmp_path / "a", tmp_path / "b"])


@pytest.mark.parametrize("port", ["0", "-1", "65536", "x", "7860.5", ""])
def test_a_port_that_is_none_is_refused(capsys, port):
    status, out, err = run(capsys, "serve", "--port", port)
    assert (status, out) == (2, "")
    assert "--port" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("option", ["megabytes", "megapixels", "letters", "seconds", "waiting"])
@pytest.mark.parametrize("value", ["0", "-1", "nan", "x"])
def test_a_limit_that_is_none_is_refused(capsys, option, value):
    status, out, err = run(capsys, "serve", f"--max-{option}", value)
    assert (status, out) == (2, "")
    assert option in err
    if value in ("0", "-1"):
        assert err == f"error: {option} {float(value) if option not in ('letters', 'waiting') else value} was asked; it is a limit, above 0\n"


def refused(capsys, *arguments):
    """(status, the one line of the error)."""
    status, out, err = run(capsys, "serve", "--port", free_port(), *arguments)
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return status, err


def test_a_folder_that_is_missing_or_holds_no_model_stops_the_start(capsys, tmp_path):
    for folder in (tmp_path / "nowhere", tmp_path):
        status, err = refused(capsys, "--model-folder", folder)
        assert status == 1
        assert f"no model folder '{folder}': it has no config.json" in err


def test_a_broken_model_and_two_of_one_name_stop_the_start(capsys, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert refused(capsys, "--model-folder", tmp_path)[0] in (1, 2)
    assert "two model folders" not in refused(capsys, "--model-folder", tmp_path)[1]


def alone(*arguments):
    """(exit status, standard output, standard error) of a server in a process of its own that does not start."""
    ended = subprocess.run([sys.executable, "-m", "zeroline.cli", "serve", *arguments], capture_output=True, text=True, timeout=300)
    return ended.returncode, ended.stdout, ended.stderr


def test_a_port_that_is_taken_is_said():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        status, out, err = alone("--port", str(port))
    assert (status, out) == (2, "")
    assert err.startswith(f"error: port {port} of 127.0.0.1 cannot be had")
    assert err.endswith("give another with --port or --host\n")
    assert err.count("\n") == 1


def test_an_address_that_is_none_is_said_in_one_line():
    status, out, err = alone("--host", "192.0.2.1", "--port", str(free_port()))
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert "192.0.2.1" in err
    assert err.count("\n") == 1


def test_an_interrupted_server_ends_without_a_traceback_and_leaves_nothing(tmp_path):
    port = free_port()
    command = [sys.executable, "-m", "zeroline.cli", "serve", "--port", str(port)]
    kept = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=kept)
    try:
        assert process.stdout.readline() == f"http://127.0.0.1:{port}  (Ctrl-C ends it)\n"
        with socket.create_connection(("127.0.0.1", port), timeout=60):
            pass
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode in (0, 130)
    assert "Traceback" not in out + err
    assert list(tmp_path.glob("zeroline-web-*")) == []
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), timeout=60):
        pass
