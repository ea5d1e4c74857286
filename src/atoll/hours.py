"""Hours: times of the day at which chips may be used, each day the same.

Text such as "22:00-07:00, 12:00-13:00" is of the clocks of a site; with an offset behind it
("22:00-07:00 +08:00") it says the same everywhere. Inside, a day is seconds of UTC from 0 up to
86400. A site with summer time counts as the offset that its file says.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from atoll.errors import InputError

DAY = 86400.0

_OFFSET = re.compile(r"([+-])(\d{2}):(\d{2})", re.ASCII)
_WINDOW = re.compile(r"(\d{1,2}):(\d{2})\s*-\s*(\d{1,2}):(\d{2})", re.ASCII)


def parse_offset(text: str) -> float:
    """ "+08:00" -> 28800.0 seconds ahead of UTC, "-03:30" -> -12600.0. Raises InputError."""
    found = _OFFSET.fullmatch(text.strip()) if isinstance(text, str) else None
    seconds = 3600 * int(found[2]) + 60 * int(found[3]) if found else 0
    if found is None or int(found[3]) > 59 or seconds > 14 * 3600:
        fix = 'hours and minutes ahead of UTC, for example "+08:00"'
        raise InputError("is no offset from UTC", value=text, fix=fix)
    return float(-seconds if found[1] == "-" else seconds)


def format_offset(seconds: float) -> str:
    """28800.0 -> "+08:00"."""
    minutes = round(abs(seconds) / 60)
    return f"{'-' if seconds < 0 else '+'}{minutes // 60:02}:{minutes % 60:02}"


def format_time(seconds: float) -> str:
    """Seconds of a day as a clock shows them: 79200.0 -> "22:00"."""
    minutes = int(seconds % DAY // 60)
    return f"{minutes // 60:02}:{minutes % 60:02}"


@dataclass(frozen=True, slots=True)
class Hours:
    """Windows (begin, end) of the day in seconds of UTC, 0 <= begin < 86400, begin < end.

    An end behind 86400 is on the next day. Windows neither meet nor overlap.
    """

    windows: tuple[tuple[float, float], ...]
    text: str

    @classmethod
    def parse(cls, text: str, *, offset: float | None = None) -> Hours:
        """The hours of a text; `offset` is that of the site, for a text without its own.

        InputError for what are no hours, for windows that overlap, and if nobody says the offset.
        """
        body, own = _split(text)
        if own is None and offset is None:
            fix = f'write "{text.strip()} +08:00", or utc = "+08:00" in the [[site]]'
            raise InputError("the offset from UTC of these hours is not known", value=text, fix=fix)
        ahead = own if own is not None else offset
        assert ahead is not None
        windows = sorted(((a - ahead) % DAY, (b - a) % DAY or DAY) for a, b in _windows(body, text))
        spans = [(begin, begin + length) for begin, length in windows]
        for index, (begin, end) in enumerate(spans):
            following = spans[(index + 1) % len(spans)][0] + DAY * (index + 1 == len(spans))
            if end > following or (end - begin == DAY and len(spans) > 1):
                raise InputError("two of these hours overlap", value=text, fix="write them as one")
        return cls(_joined(spans), f"{body.strip()} {format_offset(ahead)}")

    def holds(self, now: float) -> bool:
        """Whether a second of the day is inside."""
        return self.left(now) > 0

    def left(self, now: float) -> float:
        """Seconds until the window ends that is open at a second of the day; 0 if none is."""
        for begin, end in self.windows:
            since = (now - begin) % DAY
            if since < end - begin:
                return math.inf if end - begin == DAY else end - begin - since
        return 0.0

    def until(self, now: float) -> float:
        """Seconds until a window opens; 0 inside of one."""
        return 0.0 if self.holds(now) else min((begin - now) % DAY for begin, _ in self.windows)

    def whole(self, hour: int) -> bool:
        """Whether a whole hour of UTC, 0 to 23, lies inside."""
        begin = 3600.0 * hour
        return self.left(begin) >= 3600.0


def require_hours(text: str) -> str:
    """The text itself; InputError unless it reads as hours, with an offset or without."""
    Hours.parse(text, offset=0.0)
    return text


def _split(text: object) -> tuple[str, float | None]:
    """Hours, and the offset behind them if there is one."""
    if not isinstance(text, str) or not text.strip():
        fix = 'for example "22:00-07:00", of the clocks of the site'
        raise InputError("are no hours of the day", value=text, fix=fix)
    found = re.fullmatch(r"(.*\d)\s*([+-]\d{2}:\d{2})\s*", text, re.ASCII | re.DOTALL)
    # "22:00-07:00" ends like an offset, but what is before it is no window then.
    if found is None or _WINDOW.fullmatch(found[1].split(",")[-1].strip()) is None:
        return text, None
    return found[1], parse_offset(found[2])


def _windows(body: str, text: str) -> list[tuple[float, float]]:
    """(begin, end) of every window on the clocks of the site, both below a day."""
    found = []
    for part in body.split(","):
        match = _WINDOW.fullmatch(part.strip())
        numbers = [int(number) for number in match.groups()] if match else [99]
        times = [(numbers[i], numbers[i + 1]) for i in range(0, len(numbers) - 1, 2)]
        if not times or any(h > 24 or m > 59 or (h == 24 and m) for h, m in times):
            fix = 'for example "22:00-07:00", of the clocks of the site; "00:00-24:00" is always'
            raise InputError("are no hours of the day", value=text, fix=fix)
        (h1, m1), (h2, m2) = times
        begin, end = 3600.0 * h1 + 60.0 * m1, 3600.0 * h2 + 60.0 * m2
        if begin == end:
            fix = '"00:00-24:00" is the whole day'
            raise InputError("begin when they end", value=text, fix=fix)
        found.append((begin % DAY, end % DAY))
    return found


def _joined(spans: list[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """Windows that meet as one, round the clock too."""
    joined = list(spans)
    index = 0
    while len(joined) > 1 and index < len(joined):
        begin, end = joined[index]
        after = next((w for w in joined if w != (begin, end) and w[0] == end % DAY), None)
        if after is None:
            index += 1
            continue
        joined.remove(after)
        longer = (begin, end + after[1] - after[0])
        joined[joined.index((begin, end))] = longer
        index = 0
    if len(joined) == 1 and joined[0][1] - joined[0][0] >= DAY:
        return ((0.0, DAY),)
    return tuple(sorted(joined))
