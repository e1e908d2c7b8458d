import json

from click.testing import CliRunner
from tests.support.json_schemas import valid
from tests.support.results import NOW, host_read

from chainlift.cli.json_output import schemas
from chainlift.cli.study import command
from chainlift.report import Document, document
from chainlift.report.page import write_report
from chainlift.results.model import QemuFacts


def test_the_data_is_what_the_page_says_and_fits_its_schema(drawn):
    found = document([drawn])
    page = (drawn / "report.html").read_text(encoding="utf-8")
    assert found.headline in page
    assert len(found.findings) > 3
    for sentence in [s for s in found.findings if "^" not in s] + found.warnings:
        assert sentence.replace("'", "&#39;") in page
    titles = [table.title for table in found.tables]
    assert len(titles) == len(set(titles))
    assert all(title in page for title in titles)
    text = found.model_dump_json(by_alias=True)
    assert Document.model_validate_json(text) == found
    assert valid("study report", text)["schema"] == 2


def test_the_schema_in_the_package_has_the_keys_of_the_document():
    ours, of_the_package = Document.model_json_schema(mode="serialization"), schemas()["chainlift study report"]
    assert ours["$defs"].keys() == of_the_package["$defs"].keys()
    for mine, said in (
        (ours, of_the_package),
        *((ours["$defs"][n], of_the_package["$defs"][n]) for n in ours["$defs"]),
    ):
        assert mine["properties"].keys() == said["properties"].keys() == set(said["required"])


def test_the_schema_names_every_key_and_needs_no_results():
    done = CliRunner().invoke(command, ["report", "--schema"])
    assert done.exit_code == 0
    schema = json.loads(done.stdout)
    assert {"schema", "headline", "findings", "warnings", "failures", "tables", "method", "runs"} <= schema[
        "properties"
    ].keys()


def test_a_report_goes_where_it_is_asked_to(recorded, tmp_path):
    done = CliRunner().invoke(command, ["report", str(recorded), "--out", str(tmp_path / "elsewhere/deep")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "elsewhere/deep/report.html").is_file()
    assert not (recorded / "report.html").exists()


def test_the_page_has_the_plans_name_and_the_directorys_where_it_is_another(make):
    path = make(host_read(1, 0.1), name="tuesday", plan='name = "quick"\ntests = ["host"]\n')
    assert "<title>What a snapshot chain costs: quick (tuesday)</title>" in write_report([path]).read_text()


def test_what_a_program_printed_when_it_died_is_not_in_the_warnings(make):
    reason = "KVM does not work here: QEMU ended during its start: signal 6 (SIGABRT): a.c:1: f: Assertion `x' failed"
    qemu = QemuFacts(
        label="host", binary="q", version="7.2", source="host", accelerator="tcg", accelerator_reason=reason
    )
    guest = host_read(1, 0, test="read", variant="", metrics={"wall_s": 1.0}, started_at=NOW)
    path = make(guest, qemus=[qemu])
    (said,) = [text for text in document([path]).warnings if "KVM" in text]
    assert "signal 6 (SIGABRT). Its own reads" in said
    assert "Assertion" not in said
    assert "Assertion" in write_report([path]).read_text(), "the environment has it whole"


def test_a_part_of_a_live_switch_that_was_not_measured_is_empty_and_the_others_are_told(make):
    metrics = {"stall_s": 0.041, "restore_stall_s": 0.1, "pivot_s": 1.5, "bytes_per_s_after": 2**20, "extents": 33.0}
    path = make(host_read(300, 0, test="live", variant="", metrics=metrics))
    (table,) = [t for t in document([path]).tables if t.title == "Switching a running disk"]
    assert table.rows[0]["stall_s"] == 0.041
    assert table.rows[0]["quiet_stall_s"] is None
    assert "41.0 ms" in write_report([path]).read_text()


def test_limits_behind_a_lift_of_older_results_are_not_shown(make):
    limit = {"test": "limits", "variant": "read", "metrics": {"longest": 80.0}}
    path = make(host_read(120, 0, **limit), host_read(120, 0, lift="index", **limit))
    (table,) = [t for t in document([path]).tables if t.title == "The longest chain"]
    assert len(table.rows) == 1
