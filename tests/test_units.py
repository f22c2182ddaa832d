"""Sizes and time spans as people write them."""

from __future__ import annotations

import math
from datetime import timedelta
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aparallel._ground.units import parse_bytes, parse_seconds


class TestBytes:
    @pytest.mark.parametrize(
        ("amount", "count"),
        [
            (0, 0),
            (500, 500),
            (np.int32(7), 7),
            ("0", 0),
            ("500", 500),
            ("500B", 500),
            ("1K", 1024),
            ("1KB", 1024),
            ("1KiB", 1024),
            ("10M", 10 * 1024**2),
            ("10MB", 10 * 1024**2),
            ("10 mb", 10 * 1024**2),
            ("1.5GB", 1536 * 1024**2),
            (" 2TiB ", 2 * 1024**4),
            ("1P", 1024**5),
            ("0.5K", 512),
            ("1.9B", 1),
        ],
    )
    def test_every_way_to_write_it(self, amount: str | int, count: int) -> None:
        assert parse_bytes(amount) == count
        assert type(parse_bytes(amount)) is int

    @given(st.integers(0, 10**6), st.integers(0, 999), st.sampled_from("KMGTP"))
    def test_fractions_are_exact(self, whole: int, thousandths: int, unit: str) -> None:
        exact = (whole + Fraction(thousandths, 1000)) * 1024 ** ("KMGTP".index(unit) + 1)
        assert parse_bytes(f"{whole}.{thousandths:03d}{unit}") == math.floor(exact)

    @pytest.mark.parametrize(
        "amount",
        ["", " ", "M", "-1", "-1K", "+1", "1E3", "1e3", "1,5G", "1.G", ".5G", "1 G B", "10Mb/s", "٣K", "9" * 99],
    )
    def test_text_that_is_no_size_is_shown_with_examples(self, amount: str) -> None:
        with pytest.raises(ValueError, match=r"is not a number of bytes\. Write for example") as caught:
            parse_bytes(amount)
        assert repr(amount) in str(caught.value)

    def test_a_negative_number_is_an_error(self) -> None:
        with pytest.raises(ValueError, match="cannot be negative, got -1"):
            parse_bytes(-1)

    @pytest.mark.parametrize("amount", [None, True, 1.5, b"1M", [1]])
    def test_other_types_are_errors(self, amount: object) -> None:
        with pytest.raises(TypeError, match="integer or text such as '10MB'"):
            parse_bytes(amount)  # type: ignore[arg-type]


class TestSeconds:
    @pytest.mark.parametrize(
        ("amount", "seconds"),
        [
            (0, 0),
            (90, 90),
            (0.25, 0.25),
            (Fraction(1, 2), 0.5),
            (np.int64(3), 3),
            (np.float32(0.5), 0.5),
            (timedelta(minutes=1, milliseconds=500), 60.5),
            ("90", 90),
            ("1.5", 1.5),
            ("250ms", 0.25),
            ("90s", 90),
            ("2m", 120),
            ("2min", 120),
            ("1h30m", 5400),
            ("1h 30m", 5400),
            ("1.5h", 5400),
            ("7d", 604_800),
            ("2w", 1_209_600),
            (" 1d 2h 3m 4s 5ms ", 93_784.005),
        ],
    )
    def test_every_way_to_write_it(self, amount: str | float | timedelta, seconds: float) -> None:
        assert parse_seconds(amount) == seconds
        assert type(parse_seconds(amount)) is float

    @pytest.mark.parametrize(
        "amount", ["", " ", "d", "7D", "1M", "1y", "-1s", "1h30", "30 1h", "1e3s", "1h,30m", "inf", "nan", "7 days"]
    )
    def test_text_that_is_no_time_span_is_shown_with_examples(self, amount: str) -> None:
        with pytest.raises(ValueError, match=r"is not a time span\. Write for example") as caught:
            parse_seconds(amount)
        assert repr(amount) in str(caught.value)

    @pytest.mark.parametrize("amount", [-1, -0.5, math.inf, math.nan, timedelta(seconds=-1)])
    def test_negative_and_endless_spans_are_errors(self, amount: float | timedelta) -> None:
        with pytest.raises(ValueError, match="finite number of seconds, 0 or more"):
            parse_seconds(amount)

    @pytest.mark.parametrize("amount", [None, True, b"1s", [1], 1j])
    def test_other_types_are_errors(self, amount: object) -> None:
        with pytest.raises(TypeError, match="timedelta or text such as '7d'"):
            parse_seconds(amount)  # type: ignore[arg-type]


@given(st.text(max_size=12))
def test_any_text_is_either_read_or_a_value_error(text: str) -> None:
    for parse in (parse_bytes, parse_seconds):
        try:
            amount = parse(text)
        except ValueError:
            continue
        assert amount >= 0
