import io
import json
import logging

import pytest

from streams.log import configure_logging, get_logger

early = get_logger("streams.early")


@pytest.fixture
def lines(restore_logging):
    stream = io.StringIO()
    configure_logging("info", "device-0", stream=stream)
    return lambda: [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_says_when_who_how_bad_and_what(lines):
    get_logger("streams.here").warning("a commit did not go through", records=3)
    (line,) = lines()
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "a commit did not go through",
        "records": 3,
        "level": "warning",
        "logger": "streams.here",
        "process": "device-0",
    }


def test_a_logger_taken_before_the_set_up_follows_it(lines):
    early.info("hello")
    assert lines()[0]["logger"] == "streams.early"


def test_ordinary_logging_of_libraries_comes_in_the_same_form(lines):
    logging.getLogger("some.library").warning("disk %s", "full", extra={"folder": "/x"})
    (line,) = lines()
    assert (line["event"], line["logger"], line["process"], line["folder"]) == (
        "disk full",
        "some.library",
        "device-0",
        "/x",
    )


def test_an_exception_is_one_line_with_its_traceback(lines):
    try:
        raise ValueError("bad\nthing")
    except ValueError:
        get_logger("x").exception("it failed")
    (line,) = lines()
    assert "ValueError: bad\nthing" in line["exception"]


@pytest.mark.parametrize("key", ["sasl_plain_password", "encoder_api_key", "Authorization", "client_secret"])
def test_values_of_keys_that_name_a_secret_are_masked_however_deep(lines, key):
    get_logger("x").info("configured", **{key: "s3cret", "config": {"inner": {key: "s3cret"}}, "tokens": 7})
    (line,) = lines()
    assert "s3cret" not in json.dumps(line)
    assert line["tokens"] == 7


def test_the_level_holds_for_us_and_client_libraries_stay_quiet_even_at_debug(restore_logging):
    stream = io.StringIO()
    configure_logging("debug", "p", stream=stream)
    get_logger("streams.x").debug("seen")
    logging.getLogger("kafka.admin.client").debug("Starting with configuration: password")
    logging.getLogger("kafka.admin.client").info("connected")
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["seen"]
    configure_logging("error", "p", stream=stream)
    get_logger("streams.x").warning("not seen")
    logging.getLogger("kafka").warning("not seen")
    assert "not seen" not in stream.getvalue()


def test_on_a_terminal_lines_are_for_people(restore_logging):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    configure_logging("info", "p", stream=stream)
    get_logger("x").info("hello")
    assert "hello" in stream.getvalue()
    assert not stream.getvalue().startswith("{")
