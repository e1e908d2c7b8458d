import pytest

from chainlift import errors


def test_a_line_says_what_where_and_what_to_do():
    error = errors.ImageError("refcount_order is 9", path="/a/b.qcow2", hint="the image is damaged")
    assert str(error) == "/a/b.qcow2: refcount_order is 9; the image is damaged"


def test_a_hostile_name_stays_on_one_line():
    assert "\n" not in str(errors.ImageError("no such file", path="/a\nb\x1b[31m"))


@pytest.mark.parametrize(
    ("kind", "status"),
    [(errors.AnswerIsNo, 1), (errors.InputError, 2), (errors.PlanError, 2), (errors.QemuCrashed, 3)],
)
def test_the_class_decides_the_exit_status(kind, status):
    assert kind.exit_status == status


def test_what_is_not_known_is_no_failure_that_left_everything_as_before():
    error = errors.UnknownStateError("may have been switched", path="/a/b.qcow2", hint="look at it")
    assert error.exit_status == 4
    assert not isinstance(error, errors.OperationError)
    assert str(error) == "/a/b.qcow2: may have been switched; look at it"


def test_a_crash_knows_its_signal():
    assert errors.QemuCrashed("crashed", returncode=-11).signal == 11
    assert errors.QemuCrashed("ended", returncode=1).signal is None
