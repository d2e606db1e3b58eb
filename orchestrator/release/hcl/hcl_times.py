"""Functions of HCL for times: ``hcl_functions.py`` names them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone
from fractions import Fraction
from typing import Final

from orchestrator.release.hcl import hcl_values as values
from orchestrator.release.hcl.hcl_values import HclValue, MappingValue, ValueRefused
from platforms import durations
from platforms.errors import printable

_TIME: Final = re.compile(r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(\.\d{1,9})?(?:Z|([+-])(\d\d):(\d\d))", re.ASCII)
_TOKEN: Final = re.compile(r"''|'(?:[^']|'')*'|'.*|([YMDEhHAamsZ])\1*|(?:[^'A-Za-z])+|([A-Za-z])\2*", re.DOTALL)
_MONTHS: Final = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
_DAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def _parsed(text: str) -> datetime:
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueRefused("it is not a time as in RFC 3339")
    year, month, day, hour, minute, second = map(int, match.groups()[:6])
    offset = timedelta(hours=int(match[9] or 0), minutes=int(match[10] or 0))
    zone = timezone(-offset if match[8] == "-" else offset) if offset else UTC
    try:
        return datetime(year, month, day, hour, minute, second, tzinfo=zone)
    except ValueError as error:
        raise ValueRefused(f"it is not a time: {error}") from error


def _unix(number: int | Fraction) -> datetime:
    try:
        return datetime.fromtimestamp(values.as_whole(number), UTC)
    except (OverflowError, OSError, ValueError) as error:
        raise ValueRefused("there is no such time") from error


def _offset(time: datetime, separator: str) -> str:
    minutes = int((time.utcoffset() or timedelta()).total_seconds()) // 60
    return f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02}{separator}{abs(minutes) % 60:02}"


def rfc3339(time: datetime) -> str:
    """Return ``time`` as in RFC 3339, with Z for UTC."""
    zone = "Z" if not time.utcoffset() else _offset(time, ":")
    return f"{time.year:04}-{time.month:02}-{time.day:02}T{time.hour:02}:{time.minute:02}:{time.second:02}{zone}"


def timestamp() -> str:
    """Return the time, in UTC."""
    return rfc3339(datetime.now(UTC))


def format_date(pattern: str, text: str) -> str:
    """Return a time in the form that ``pattern`` describes: ``YYYY-MM-DD 'at' hh:mm``."""
    return _formatted(pattern, _parsed(text))


def format_timestamp(pattern: str, value: HclValue) -> str:
    """Return a time, as text or in seconds since 1970, in the form that ``pattern`` describes; "X" for seconds."""
    if isinstance(value, str):
        time = _parsed(value)
    elif isinstance(value, int | Fraction) and not isinstance(value, bool):
        time = _unix(value)
    else:
        raise ValueRefused("the time has to be a string or a number")
    return str(int(time.timestamp())) if pattern == "X" else _formatted(pattern, time)


def _formatted(pattern: str, time: datetime) -> str:
    if len(pattern) > 4096:
        raise ValueRefused("the format is too long")
    return "".join(_token(match[0], time) for match in _TOKEN.finditer(pattern))


def _token(token: str, time: datetime) -> str:
    if token[0] == "'":
        if len(token) == 1 or token[-1] != "'":
            raise ValueRefused("a quote is not closed in the format")
        return "'" if token == "''" else token[1:-1].replace("''", "'")
    if not token[0].isalpha():
        return token
    noon = time.hour % 12 or 12
    zone = _offset(time, "")
    forms = (
        ("YY", f"{time.year % 100:02}"),
        ("YYYY", f"{time.year:04}"),
        ("M", str(time.month)),
        ("MM", f"{time.month:02}"),
        ("MMM", _MONTHS[time.month - 1][:3]),
        ("MMMM", _MONTHS[time.month - 1]),
        ("D", str(time.day)),
        ("DD", f"{time.day:02}"),
        ("EEE", _DAYS[time.weekday()][:3]),
        ("EEEE", _DAYS[time.weekday()]),
        ("h", str(time.hour)),
        ("hh", f"{time.hour:02}"),
        ("H", str(noon)),
        ("HH", f"{noon:02}"),
        ("AA", "AM" if time.hour < 12 else "PM"),
        ("aa", "am" if time.hour < 12 else "pm"),
        ("m", str(time.minute)),
        ("mm", f"{time.minute:02}"),
        ("s", str(time.second)),
        ("ss", f"{time.second:02}"),
        ("Z", "Z" if zone == "+0000" else _offset(time, ":")),
        ("ZZZ", "UTC" if zone == "+0000" else zone),
        ("ZZZZ", zone),
        ("ZZZZZ", _offset(time, ":")),
    )
    found = dict(forms).get(token)
    if found is None:
        raise ValueRefused(f"the format has no {printable(token, 40)}: put letters in quotes")
    return found


def time_add(text: str, duration: str) -> str:
    """Return the time that is a duration (``1h30m``, ``-10s``) after another."""
    time = _parsed(text)
    length = durations.nanoseconds(duration)
    if length is None:
        raise ValueRefused("it is not a duration")
    try:
        return rfc3339(time + timedelta(microseconds=length // 1000))
    except OverflowError as error:
        raise ValueRefused("there is no such time") from error


def unix_timestamp_parsed(seconds: int) -> MappingValue:
    """Return the parts of a time in seconds since 1970."""
    time = _unix(seconds)
    iso = time.isocalendar()
    return values.mapping(
        "object",
        {
            "year": time.year,
            "year_day": time.timetuple().tm_yday,
            "day": time.day,
            "month": time.month,
            "month_name": _MONTHS[time.month - 1],
            "weekday": time.isoweekday() % 7,
            "weekday_name": _DAYS[time.weekday()],
            "hour": time.hour,
            "minute": time.minute,
            "second": time.second,
            "rfc3339": rfc3339(time),
            "iso_year": iso.year,
            "iso_week": iso.week,
        },
    )
