import resource

import pytest

from chainlift.host.process_limits import many_open_files, open_files


@pytest.fixture
def few():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (300, before[1]))
    yield 300
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_limit_is_raised_for_as_long_as_anybody_needs_it(few):
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    first, second = many_open_files(), many_open_files()
    first.__enter__()
    second.__enter__()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    assert open_files() == few  # what it usually is
    first.__exit__(None, None, None)  # not the last one that came
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    second.__exit__(None, None, None)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (few, hard)


def test_the_limit_comes_back_when_the_block_fails(few):
    with pytest.raises(RuntimeError), many_open_files():
        raise RuntimeError
    assert open_files() == few
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == few
