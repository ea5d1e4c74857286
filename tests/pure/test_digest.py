"""Digests depend on the value alone, and on all of it."""

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.digest import canonical_json, digest_of, file_sha256, sha256_hex

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=3), st.integers()))
def test_the_order_of_keys_does_not_matter(table: dict[str, int]) -> None:
    backwards = dict(reversed(list(table.items())))
    assert canonical_json(table) == canonical_json(backwards)


@given(plain)
def test_canonical_json_is_json_and_stable(value: object) -> None:
    data = canonical_json(value)
    back = json.loads(data)
    assert back == value
    assert canonical_json(back) == data


def test_the_form_is_fixed() -> None:
    assert canonical_json({"b": [1, 2.5, None, True], "a": "三"}) == (
        '{"a":"三","b":[1,2.5,null,true]}'.encode()
    )
    # Written down, so that no later version changes every digest unnoticed.
    assert digest_of({"a": 1}) == sha256_hex(b'{"a":1}')


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_has_no_digest(value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        digest_of({"x": value})


def test_a_file_is_read_in_blocks(tmp_path: Path) -> None:
    path = tmp_path / "file"
    data = bytes(range(256)) * 10_000
    path.write_bytes(data)
    seen: list[int] = []
    assert file_sha256(path, seen.append) == hashlib.sha256(data).hexdigest()
    assert sum(seen) == len(data)
    assert len(seen) > 1
