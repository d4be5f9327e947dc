"""Servers that the tests of this folder share: one that whoever connects may call, one with a token for everywhere."""

import pytest

from served import TOKEN, Served
from server_process import written


@pytest.fixture
def upstream(lasting):
    lasting.begin_anew()
    return lasting


@pytest.fixture(scope="session")
def _running(lasting, tmp_path_factory):
    with Served(written(tmp_path_factory.mktemp("free"), lasting.url)) as served:
        yield served


@pytest.fixture(scope="session")
def _guarded(lasting, tmp_path_factory):
    options = ("--max-body", "64KiB", "--allowed-host", "mill.example.com")
    config = written(tmp_path_factory.mktemp("guarded"), lasting.url)
    environ = {"PROMPTMILL_HTTP_TOKEN": TOKEN}
    with Served(config, *options, listen="0.0.0.0:0", environ=environ) as served:
        yield served


@pytest.fixture
def server(_running, upstream):
    """A server on loopback without a token, that other tests used before and will use after."""
    return _running


@pytest.fixture
def guarded(_guarded, upstream):
    """A server for every address of the machine, with a token and a small limit of bodies."""
    return _guarded
