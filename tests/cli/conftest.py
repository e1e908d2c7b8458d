"""The command, called in this process."""

import pytest

from chainlift.cli.main import main


@pytest.fixture
def said(capsys):
    """Runs a verb; returns its exit status and what it said on standard output and error."""

    def run(*words):
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    return run
