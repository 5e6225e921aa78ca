"""The configuration, and the log format."""

from __future__ import annotations

import dataclasses
import logging

import pytest

from container_service import logs
from container_service.config import VARIABLES, Config, ConfigError, describe


def test_only_the_token_is_required() -> None:
    assert Config.from_env({"FLY_API_TOKEN": "t"}) == Config(fly_token="t")


def test_every_variable_sets_its_field() -> None:
    env = {
        "FLY_API_TOKEN": "t",
        "FLY_FLAPS_BASE_URL": "http://127.0.0.1:4280/",
        "ROOST_CONTAINER_LISTEN": "[::1]:0",
        "ROOST_HEALTH_LISTEN": "0.0.0.0:50053",
        "ROOST_TLS_CERT": "/certificates/server.pem",
        "ROOST_TLS_KEY": "/certificates/server.key",
        "ROOST_TLS_CLIENT_CA": "/certificates/ca.pem",
        "ROOST_INSECURE": "yes",
        "ROOST_FLY_APP": "birds",
        "ROOST_URL_TEMPLATE": "https://{app}.fly.dev/",
        "ROOST_STATE_LIMIT": "1000",
        "ROOST_LAG_WINDOW": "0.5",
        "ROOST_CONNECTION_AGE": "60",
        "ROOST_READER_PATIENCE": "70",
        "ROOST_LAME_DUCK": "2",
        "ROOST_GRACE": "3",
        "ROOST_LOG_LEVEL": "debug",
        "ROOST_FLY_RATE_SHARE": "0.5",
        "ROOST_FLY_RETRY_RATIO": "0.2",
        "ROOST_FLY_BREAKER_FAILURES": "7",
        "ROOST_FLY_BREAKER_LONGEST": "30",
    }
    assert set(env) == {variable.name for variable in VARIABLES}
    assert {variable.field for variable in VARIABLES} == {
        field.name for field in dataclasses.fields(Config)
    }
    assert Config.from_env(env) == Config(
        fly_token="t",
        listen="[::1]:0",
        health_listen="0.0.0.0:50053",
        tls_cert="/certificates/server.pem",
        tls_key="/certificates/server.key",
        tls_client_ca="/certificates/ca.pem",
        insecure=True,
        fly_base_url="http://127.0.0.1:4280",
        fly_app="birds",
        url_template="https://{app}.fly.dev",
        state_limit=1000,
        lag_window=0.5,
        connection_age=60.0,
        reader_patience=70.0,
        lame_duck=2.0,
        grace=3.0,
        log_level="DEBUG",
        fly_rate_share=0.5,
        fly_retry_ratio=0.2,
        fly_breaker_failures=7,
        fly_breaker_longest=30.0,
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FLY_API_TOKEN", ""),
        ("FLY_API_TOKEN", "two\nlines"),
        ("FLY_FLAPS_BASE_URL", "api.machines.dev"),
        ("FLY_FLAPS_BASE_URL", "ftp://x"),
        ("FLY_FLAPS_BASE_URL", "http://x:port"),
        ("FLY_FLAPS_BASE_URL", "http://user:hunter2@x"),
        ("ROOST_CONTAINER_LISTEN", "50052"),
        ("ROOST_CONTAINER_LISTEN", "127.0.0.1:99999"),
        ("ROOST_CONTAINER_LISTEN", ":x"),
        ("ROOST_FLY_APP", "Upper"),
        ("ROOST_URL_TEMPLATE", "http://{host}/"),
        ("ROOST_URL_TEMPLATE", "{app}.fly.dev"),
        ("ROOST_STATE_LIMIT", "0"),
        ("ROOST_STATE_LIMIT", "many"),
        ("ROOST_LAG_WINDOW", "-1"),
        ("ROOST_LAG_WINDOW", "nan"),
        ("ROOST_LAG_WINDOW", "soon"),
        ("ROOST_GRACE", "inf"),
        ("ROOST_LOG_LEVEL", "LOUD"),
        ("ROOST_FLY_RATE_SHARE", "0"),
        ("ROOST_FLY_RATE_SHARE", "2"),
    ],
)
def test_an_invalid_value_is_one_line_that_names_the_variable(name: str, value: str) -> None:
    with pytest.raises(ConfigError) as wrong:
        Config.from_env({"FLY_API_TOKEN": "t"} | {name: value})
    assert str(wrong.value).startswith(name)
    assert "\n" not in str(wrong.value)
    assert "hunter2" not in str(wrong.value)


def test_the_repr_omits_the_token_and_the_help_lists_every_variable() -> None:
    assert "hunter2" not in repr(Config(fly_token="hunter2"))
    assert all(variable.name in describe() for variable in VARIABLES)


def test_a_log_line_is_a_sentence_and_key_value_pairs() -> None:
    record = logging.LogRecord("roost", logging.INFO, "f", 1, "Did %s\nthen", ("it",), None)
    record.action = "did"
    record.what = 'a "b" c'
    token = logs.request_id.set("r-1")
    try:
        line = logs.KeyValueFormatter().format(record)
    finally:
        logs.request_id.reset(token)
    assert line.endswith('INFO roost: Did it\\nthen action=did what="a \\"b\\" c" request_id=r-1')
