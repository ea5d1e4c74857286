"""Offers: what can be bought or leased when, with which money, under which limits.

The nouns of an offers file and its strict loading. Money is text with a currency ("120000 CNY",
"2.95 USD/h"), a lead time text with a unit. Nothing is decided here: that is `orders`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    model_validator,
)

from atoll import strict, units
from atoll.errors import InputError
from atoll.facts.rules import Mode
from atoll.fleet import ChipName, with_chip_file
from atoll.site import Country, Name, Network
from atoll.strict import Noun
from atoll.supply import Day, Which

DEAREST = 1e12
"""Money for a chip, or for a chip and second: more is a slip of the pen."""

LONGEST_LEAD = 3650.0
"""Days: a lead time above ten years is a slip of the pen."""


def _days(text: str) -> str:
    if units.parse_seconds(text) > LONGEST_LEAD * 86400:
        fix = f'at most {LONGEST_LEAD:.0f} d, for example "45 d"'
        raise InputError("is longer than ten years", value=text, fix=fix)
    return text


def _watts(text: str) -> str:
    if units.parse_watts(text) == 0:
        raise InputError("must be more than 0", value=text, fix='for example "700 W"')
    return text


def _money(text: str) -> str:
    units.parse_money(text)
    return text


Label = Annotated[str, Field(min_length=1, max_length=60)]
Span = Annotated[str, AfterValidator(_days)]


class Window(Noun):
    """The days from `since` ("from" in the file) to `until`, both counted; None is open."""

    since: Day | None = Field(default=None, alias="from")
    until: Day | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.since is not None and self.until is not None and self.until < self.since:
            fix = f"a day from {self.since} on"
            raise InputError("ends before it begins", key="until", value=str(self.until), fix=fix)
        return self

    def holds(self, day: float) -> bool:
        """Whether a day (an ordinal, with a fraction) lies in the window."""
        after = self.since is None or day >= self.since.toordinal()
        return after and (self.until is None or day < self.until.toordinal() + 1)


RANGED = ("price", "stock", "lead")
"""Keys of an offer that may be given as { low, mid, high }."""


class Offer(Window):
    """Chips of one kind that a seller would deliver to a site.

    `price` is of one chip: money to buy it ("120000 CNY"), money a time to lease it ("2.95
    USD/h"). `stock` is all chips there are; of a lease, all at a time. `a_month` limits what the
    seller takes orders for in a month. An order is of whole lots, is placed in the window, and
    arrives after `lead`; a lease then lasts `term`, a step of the file if none is given. `power` is
    of one chip with all that it needs around it; without it the chip's own, times the file's
    `power_factor`.

    Price, stock and lead may be { low, mid, high }: the attributes are the mid ones, `at` gives the
    ends. Rules ask for `mode`, and for the countries of headquarters: `hq` of the ultimate parent
    of who orders, `owner_hq` and `operator_hq` of who owns and runs leased chips; what is not said
    here is the site's.
    """

    name: Label
    chip: ChipName
    seller: str = Field(min_length=1, max_length=60)
    site: Name
    kind: Literal["buy", "lease"] = "buy"
    price: str = Field(examples=["120000 CNY"])
    stock: int = Field(ge=1, le=10**8)
    a_month: int | None = Field(default=None, ge=1, le=10**8)
    lead: Span = "0 d"
    lot: int = Field(default=1, ge=1, le=10**6)
    term: Span | None = None
    power: Annotated[str, AfterValidator(_watts)] | None = None
    network: Network | None = None
    mode: Mode | None = None
    hq: Country | None = None
    owner_hq: Country | None = None
    operator_hq: Country | None = None
    source: str = ""
    _ends: dict[Which, Offer] = PrivateAttr(default_factory=dict)

    @model_validator(mode="wrap")
    @classmethod
    def _between(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """The offer of the mid numbers, which keeps those of the ends."""
        keys = [key for key in RANGED if isinstance(data, dict) and isinstance(data.get(key), dict)]
        if not keys:
            return handler(data)
        for key in keys:
            _require_ends(key, data[key])
        plain = {**data, **{key: data[key]["mid"] for key in keys}}
        mid = handler(plain)
        for which in ("low", "high"):
            end = handler({**plain, **{key: data[key][which] for key in keys if key != "stock"}})
            stock = data["stock"][which] if "stock" in keys else mid.stock
            if not isinstance(stock, int) or not 0 <= stock <= 10**8:
                key, fix = f"stock.{which}", "a whole number from 0 to 100000000"
                raise InputError("is no number of chips", key=key, value=stock, fix=fix)
            mid._ends[which] = end.model_copy(update={"stock": stock})
        _require_order(mid)
        return mid

    def at(self, which: Which) -> Offer:
        """The offer at one end of what is not known of it: "low" is cheap, few, soon."""
        return self._ends.get(which, self)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        number, _ = self.money()
        if number == 0:
            fix = "what costs nothing belongs into the fleet's [[delivery]]"
            raise InputError("a price is more than 0", key="price", value=self.price, fix=fix)
        if number > DEAREST:
            fix = f"at most {DEAREST:.0e}"
            raise InputError("is no price of a chip", key="price", value=self.price, fix=fix)
        if self.lot > self.stock:
            fix = f"a lot of at most {self.stock}, or a larger stock"
            raise InputError("is more than the stock", key="lot", value=self.lot, fix=fix)
        if self.a_month is not None and self.lot > self.a_month:
            fix = f"a lot of at most {self.a_month}, or more a month"
            raise InputError("is more than a month's", key="lot", value=self.lot, fix=fix)
        if self.term is not None and self.kind == "buy":
            fix = 'leave it out, or write kind = "lease"'
            raise InputError("what is bought has no term", key="term", value=self.term, fix=fix)
        if self.term is not None and units.parse_seconds(self.term) < 86400:
            raise InputError("a lease lasts a day or more", key="term", value=self.term)
        if self.mode is not None and (self.mode in ("lease", "api")) != (self.kind == "lease"):
            fix = (
                'leave mode out, or write kind = "buy" with "buy" or "own-abroad", kind = "lease" '
            )
            fix += 'with "lease" or "api"'
            raise InputError(f"does not go with kind = {self.kind}", key="mode", fix=fix)
        return self

    def money(self) -> tuple[float, str]:
        """(number, currency) of one chip; of a lease, of one chip a second."""
        try:
            return (units.parse_rent if self.kind == "lease" else units.parse_money)(self.price)
        except InputError as fault:
            fault.key = "price"
            if self.kind == "buy" and "/" in self.price:
                fault.fix = 'a price to buy: "120000 CNY"; or write kind = "lease"'
            raise

    @property
    def lead_days(self) -> float:
        """Days from an order to its chips."""
        return units.parse_seconds(self.lead) / 86400


def _require_ends(key: str, ends: Mapping[str, Any]) -> None:
    """InputError if low, mid and high are not all that a range holds."""
    fix = f"write {key} = {{ low = ..., mid = ..., high = ... }}"
    for wanted in ("low", "mid", "high"):
        if wanted not in ends:
            raise InputError("this key is missing", key=f"{key}.{wanted}", fix=fix)
    for name in ends:
        if name not in ("low", "mid", "high"):
            raise InputError("there is no such key", key=f"{key}.{name}", fix=fix)


def _require_order(offer: Offer) -> None:
    """InputError if the ends of a range do not hold low <= mid <= high, in one currency."""
    three = [offer.at("low"), offer, offer.at("high")]
    if len({one.money()[1] for one in three}) > 1:
        raise InputError("holds two currencies", key="price", fix="write one of them")
    for key, numbers in (
        ("price", [one.money()[0] for one in three]),
        ("stock", [one.stock for one in three]),
        ("lead", [one.lead_days for one in three]),
    ):
        if numbers != sorted(numbers):
            raise InputError("must hold low <= mid <= high", key=key, fix="sort the three numbers")


class Budget(Window):
    """The most that may be spent in one currency at a place in a window.

    `place` is a country or a site, "" anywhere. With `converts`, payments in other currencies
    count too, at the exchange rates. A payment must lie under every budget that covers it, and
    under one at least.
    """

    name: Label
    amount: Annotated[str, AfterValidator(_money)] = Field(examples=["40 B CNY"])
    place: str = ""
    converts: bool = False

    @property
    def number(self) -> float:
        """The amount."""
        return units.parse_money(self.amount)[0]

    @property
    def currency(self) -> str:
        """The currency of the amount."""
        return units.parse_money(self.amount)[1]


class Limit(Noun):
    """A share of the spend at a place that goes to some sellers: at least, or at most."""

    name: Label
    sellers: list[str] = Field(min_length=1)
    place: str = ""
    at_least: float | None = Field(default=None, ge=0, le=1)
    at_most: float | None = Field(default=None, ge=0, le=1)

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.at_least is None) == (self.at_most is None):
            fix = "write at_least = 0.6 or at_most = 0.4"
            raise InputError("a limit holds one of at_least and at_most", fix=fix)
        return self

    def words(self) -> str:
        """What it asks for."""
        if self.at_least is not None:
            return f"at least {100 * self.at_least:g} %"
        return f"at most {100 * (self.at_most or 0.0):g} %"


def _can_be(limits: Iterable[Limit]) -> bool:
    """Whether shares of sellers that add up to 1 can meet limits of one place.

    Sellers that the same limits name are one; there is always somebody whom none names.
    """
    from scipy.optimize import linprog

    held = list(limits)
    sellers = {seller for one in held for seller in one.sellers}
    kinds = sorted({tuple(seller in one.sellers for one in held) for seller in sellers})
    kinds.append((False,) * len(held))
    rows, high = [], []
    for place, one in enumerate(held):
        sign = -1.0 if one.at_least is not None else 1.0
        rows.append([sign * kind[place] for kind in kinds])
        high.append(sign * (one.at_least if one.at_least is not None else one.at_most or 0.0))
    found = linprog(
        [0.0] * len(kinds), A_ub=rows or None, b_ub=high or None,
        A_eq=[[1.0] * len(kinds)], b_eq=[1.0],
    )  # fmt: skip
    return bool(found.status != 2)


class ExchangeRate(Noun):
    """So many of the currency `to` are one of the currency `of` ("from" in the file)."""

    of: str = Field(alias="from", pattern=r"^[A-Z]{3}$", examples=["USD"])
    to: str = Field(pattern=r"^[A-Z]{3}$", examples=["CNY"])
    rate: float = Field(gt=0, le=1e9)

    @model_validator(mode="after")
    def _of_two(self) -> Self:
        if self.of == self.to:
            raise InputError("a rate is between two currencies", key="to", value=self.to)
        return self


class Offers(Noun):
    """An offers file: the months from `start`, offers, budgets, limits, exchange rates.

    Orders are placed once a step of `step_months`. `availability` is the part of the time in which
    chips compute; `currency` is the one in which all is added up, the first budget's if not given.
    """

    FILE_KEYS = ("schema",)

    start: Day = Field(examples=["2025-01-01"])
    months: int = Field(default=24, ge=1, le=120)
    step_months: int = Field(default=1, ge=1, le=12)
    availability: float = Field(default=1.0, gt=0, le=1)
    power_factor: float = Field(default=1.0, ge=1, le=10)
    currency: str | None = Field(default=None, pattern=r"^[A-Z]{3}$")
    offer: list[Offer] = Field(min_length=1, max_length=500)
    budget: list[Budget] = Field(min_length=1, max_length=100)
    limit: list[Limit] = Field(default=[], max_length=100)
    exchange_rate: list[ExchangeRate] = []

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for table in ("offer", "budget", "limit"):
            strict.unique(table, (one.name for one in getattr(self, table)))
        pairs = [{one.of, one.to} for one in self.exchange_rate]
        for index, pair in enumerate(pairs):
            if pair in pairs[:index]:
                key, fix = f"exchange_rate[{index}]", "one rate for two currencies, either way"
                message = f"the rate between {' and '.join(sorted(pair))} is there twice"
                raise InputError(message, key=key, fix=fix)
        if self.months % self.step_months:
            fix = f"months = {-(-self.months // self.step_months) * self.step_months}"
            message = f"is no multiple of step_months = {self.step_months}"
            raise InputError(message, key="months", value=self.months, fix=fix)
        if self.start.day > 28:
            fix = "the 1st of the month, say"
            message = "a month has no such day every time"
            raise InputError(message, key="start", value=str(self.start), fix=fix)
        sellers = list(dict.fromkeys(one.seller for one in self.offer))
        for index, limit in enumerate(self.limit):
            for seller in limit.sellers:
                if seller not in sellers:
                    key, fix = (
                        f"limit[{index}].sellers",
                        strict.nearest(seller, sellers, what="sellers"),
                    )
                    raise InputError("offers nothing here", key=key, value=seller, fix=fix)
        self._require_currencies()
        self._require_possible_limits()
        return self

    def _require_currencies(self) -> None:
        """InputError for a currency that nobody pays in, or that cannot be added up."""
        known = sorted({one.currency for one in self.budget})
        prices = {one.money()[1] for one in self.offer}
        rated = {one.of for one in self.exchange_rate} | {one.to for one in self.exchange_rate}
        converts = any(one.converts for one in self.budget)
        if self.currency is not None and self.currency not in (*known, *rated):
            fix = strict.nearest(self.currency, sorted({*known, *rated}), what="currencies")
            raise InputError("no budget is in it", key="currency", value=self.currency, fix=fix)
        for index, offer in enumerate(self.offer):
            _, currency = offer.money()
            key = f"offer[{index}].price"
            if currency not in known and not (converts and currency in rated):
                fix = strict.nearest(currency, known, what="currencies of budgets")
                message = f"no budget pays in {currency}"
                raise InputError(message, key=key, value=offer.price, fix=fix)
            self.rate(currency, self.added_in, key=key)

        for index, budget in enumerate(self.budget):
            if not budget.converts and budget.currency not in prices:
                key, fix = (
                    f"budget[{index}].amount",
                    strict.nearest(budget.currency, sorted(prices), what="currencies of prices"),
                )
                message = f"nothing is priced in {budget.currency}, and the budget does not convert"
                raise InputError(message, key=key, value=budget.amount, fix=fix)

    def _require_possible_limits(self) -> None:
        """InputError for limits of one place that no spend there can meet.

        Shares of sellers, the others together as one more, add up to 1; the limits that forbid that
        together are thinned out until any one less would do.
        """
        for place in dict.fromkeys(one.place for one in self.limit):
            mine = [(index, one) for index, one in enumerate(self.limit) if one.place == place]
            if _can_be(limit for _, limit in mine):
                continue
            for pair in list(mine):
                fewer = [one for one in mine if one is not pair]
                if not _can_be(limit for _, limit in fewer):
                    mine = fewer
            (index, last), others = mine[-1], [limit for _, limit in mine[:-1]]
            said = " and ".join(f"{one.name} ({one.words()})" for one in [*others, last])
            message = f"no spend can meet {said}" + (" together" if others else "")
            fix = "widen one of them, or give them places of their own"
            raise InputError(message, key=f"limit[{index}]", fix=fix)

    @property
    def added_in(self) -> str:
        """The currency in which all is added up."""
        return self.currency or self.budget[0].currency

    def rate(self, of: str, to: str, *, key: str | None = None) -> float:
        """So many of `to` are one of `of`. InputError if no exchange rate says so."""
        if of == to:
            return 1.0
        for one in self.exchange_rate:
            if (one.of, one.to) == (of, to):
                return one.rate
            if (one.of, one.to) == (to, of):
                return 1.0 / one.rate
        fix = f'[[exchange_rate]] from = "{of}", to = "{to}", rate = ...'
        raise InputError(f"no exchange rate from {of} to {to}", key=key, fix=fix)

    @property
    def end(self) -> date:
        """The day after the last one on which an order of this file may still arrive."""
        longest = max(one.at("high").lead_days for one in self.offer)
        return date.fromordinal(int(self.boundaries()[-1] + longest) + 1)

    def boundaries(self) -> list[float]:
        """The first day of each step as an ordinal, and the day after the last step."""
        days = []
        for passed in range(0, self.months + 1, self.step_months):
            years, month = divmod(self.start.month - 1 + passed, 12)
            days.append(float(date(self.start.year + years, month + 1, self.start.day).toordinal()))
        return days

    @classmethod
    def load(cls, path: Path | str) -> Offers:
        """The offers in a TOML file; chips of one's own are looked for beside it. InputError."""
        data = strict.load_toml(path)
        offers = data.get("offer")
        if isinstance(offers, list):
            data["offer"] = [with_chip_file(one, Path(path).parent) for one in offers]
        return cls.from_dict(data, file=path)

    @classmethod
    def from_dict(cls, data: dict[str, Any], *, file: Path | str | None = None) -> Offers:
        """The offers in plain tables. InputError as `load`."""
        return strict.validate(cls, strict.take_schema(data, file=file or "offers"), file=file)
