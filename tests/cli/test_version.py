"""``zeroline --version``."""

import pytest

import zeroline as zl
from zeroline.cli import main


def test_the_version_is_one_line_on_standard_output(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert not ended.value.code
    assert capsys.readouterr().out == f"zeroline {zl.__version__}\n"


def test_help_still_says_what_zeroline_is_and_lists_the_version(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert "What a model bases a prediction on" in shown
    assert "--version" in shown
    assert "Options that stand before a command" not in shown


def test_a_wrong_command_is_still_a_usage_error(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["explane"])
    assert ended.value.code == 2
    assert "explane" in capsys.readouterr().err
