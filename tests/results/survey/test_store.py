"""A survey's file: written line by line, gone on with, and refused where it is another's."""

import json
import multiprocessing
from importlib.resources import files

import pytest
from tests.support.surveys import START, chain, survey

from chainlift.errors import InputError
from chainlift.results.survey.records import Trouble, json_schema
from chainlift.results.survey.store import SurveyWriter, read_survey, to_line


def test_the_schema_of_the_package_is_that_of_the_records():
    held = json.loads((files("chainlift") / "schemas/survey.json").read_text())
    assert held == json.loads(json.dumps(json_schema())), "write it anew: json_schema() of results/survey/records.py"


def test_what_is_written_is_read(tmp_path):
    whole = survey(chain("a", 3), chain("b", 300))
    with SurveyWriter(tmp_path / "s", whole.head) as writer:
        assert writer.found is None
        for one in (*whole.chains, whole.end):
            writer.write(one)
    again = read_survey(tmp_path / "s")
    assert (again.head, again.chains, again.end) == (whole.head, whole.chains, whole.end)


def test_an_interrupted_survey_is_gone_on_with(tmp_path):
    head = survey().head
    trouble = Trouble(host="h1", path="/srv/x", what="is busy")
    with SurveyWriter(tmp_path / "s", head) as writer:
        for one in (chain("a", 3), chain("b", 4), trouble):
            writer.write(one)
    with (tmp_path / "s").open("ab") as stream:
        stream.write(to_line(chain("c", 5))[:-20])  # as a kill leaves it
    later = head.model_copy(update={"started_at": START.replace(hour=5)})
    with SurveyWriter(tmp_path / "s", later) as writer:
        assert [one.path for one in writer.found.chains] == ["/srv/a", "/srv/b"]
        writer.write(chain("b", 6))
        writer.write(Trouble(host="h1", path="/srv/a", what="went", left_out=False))
        writer.write(survey().end)
    found = read_survey(tmp_path / "s")
    # The last line of a chain counts, one that went is none, and what was in the way the first time was tried again.
    assert [(one.path, one.length) for one in found.chains] == [("/srv/b", 6)]
    assert (found.left_out, found.head.started_at) == (0, later.started_at)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", "has no line"),
        (b"{}\n", "is no survey of schema 1"),
        (b"PK\x03\x04\n", "is no survey of schema 1"),
        (b'{"kind":"end"', "has no line"),
        (to_line(survey().end), "its first line says nothing of one"),
        (to_line(survey().head).replace(b'"schema":1', b'"schema":2'), "schema"),
        (to_line(survey().head) + b'{"kind":"chain"}\n', "line 2"),
    ],
)
def test_what_is_no_survey_is_refused(tmp_path, text, why):
    (tmp_path / "s").write_bytes(text)
    with pytest.raises(InputError, match=why):
        read_survey(tmp_path / "s")


def test_a_file_of_somebody_else_is_left_as_it_is(tmp_path):
    path = tmp_path / "s"
    whole = survey(chain("a", 3))
    other = survey(place="/elsewhere")
    for text, why in (
        (b"notes\n", "is no survey"),
        (to_line(whole.head) + to_line(whole.end), "is complete"),
        (to_line(other.head), "another survey"),
    ):
        path.write_bytes(text)
        with pytest.raises(InputError, match=why):
            SurveyWriter(path, whole.head)
        assert path.read_bytes() == text
    with pytest.raises(InputError, match="cannot be written"):
        SurveyWriter(tmp_path, whole.head)


def test_two_surveys_do_not_write_one_file(tmp_path):
    with SurveyWriter(tmp_path / "s", survey().head):
        context = multiprocessing.get_context("fork")
        with context.Pool(1) as pool, pytest.raises(InputError, match="another survey is writing it"):
            pool.apply(SurveyWriter, (tmp_path / "s", survey().head))
