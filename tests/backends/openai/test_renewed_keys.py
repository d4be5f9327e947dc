"""A key that expires is renewed by a program, once for all requests, and no row pays for it."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import random
import sys

import pytest

from dialect_replies import reply_of
from driving import ask, echoes, opened
from fakes import openai_plan
from promptmill.backends.openai import renewed_key
from promptmill.backends.openai.endpoint import endpoints
from promptmill.backends.openai.renewed_key import KeyCommand, NoKeyError, RenewedKey, key_in
from promptmill.backends.protocol import Key
from promptmill.core.errors import Code
from promptmill.system.subprocesses import Output, output_of
from renewed import ChangingKey
from replies import answer, late, status

NOW = 1_700_000_000.0


@pytest.fixture
def keys(tmp_path):
    return ChangingKey(tmp_path / "keys")


def _with(upstream, keys, **block):
    return opened(upstream.url, api_key=None, api_key_command=keys.command, **block)
