"""The file of prices, and what is said of a wrong one."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from caa.prices import LARGEST, read_prices
from providers.base import ConfigError


def written(directory: Path, text: str) -> Path:
    path = directory / "prices"
    path.write_text(text)
    return path


def test_yaml_and_json_say_the_same(tmp_path: Path) -> None:
    entries = {"m6a.large": 0.0864, "m6a.large@spot": 0.0351, "free@on-demand": 0}
    expected = {("m6a.large", ""): 0.0864, ("m6a.large", "spot"): 0.0351, ("free", "on-demand"): 0.0}
    assert read_prices(written(tmp_path, "".join(f"{k}: {v}\n" for k, v in entries.items()))) == expected
    assert read_prices(written(tmp_path, json.dumps(entries))) == expected
    assert read_prices(None) == {}


def test_every_wrong_entry_is_told_with_what_is_allowed(tmp_path: Path) -> None:
    text = "a: cheap\nb: -1\nc: .nan\nd@auction: 1\n'@spot': 1\n7: 1\ne: true\ng: .inf\nf: 1\n"
    with pytest.raises(ConfigError) as error:
        read_prices(written(tmp_path, text))
    assert {problem.key for problem in error.value.problems} == {"CAA_PRICES_FILE"}
    told = [problem.message for problem in error.value.problems]
    assert len(told) == 8
    for shown in ("'a': 'cheap'", "'b': -1", "'c': nan", "'d@auction'", "'@spot'", "7 is", "'e': True", "'g': inf"):
        assert sum(shown in message for message in told) == 1, shown
    assert "on-demand, spot" in "".join(told)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- m6a.large", "must hold lines"),
        ("", "must hold lines"),
        ("a: [", "neither YAML nor JSON"),
        ("!!python/object/apply:os.system ['true']", "neither YAML nor JSON"),
        ("[" * 5000, "neither YAML nor JSON"),
        ("#" * (LARGEST + 1), "larger than 4 MiB"),
    ],
    ids=["list", "empty", "broken", "code", "deep", "large"],
)
def test_what_is_no_price_list_is_refused_with_its_path(tmp_path: Path, text: str, said: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError, match=said) as error:
        read_prices(path)
    assert str(path) in str(error.value)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"CAA_PRICES_FILE: .*nowhere' cannot be read: No such file"):
        read_prices(tmp_path / "nowhere")


def test_1500_types_are_read_in_less_than_a_second(tmp_path: Path) -> None:
    path = written(tmp_path, "".join(f"m{n}.large: {n / 1000}\nm{n}.large@spot: {n / 3000}\n" for n in range(1500)))
    begun = time.process_time()  # the machine is shared
    assert len(read_prices(path)) == 3000
    assert time.process_time() - begun < 1
