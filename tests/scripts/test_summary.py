"""internvla-summary prints a table or JSON for one variant or all."""

import json

import pytest

from lerobot_internvla.scripts.summary import main


def test_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "120")
    main(["--variant", "3b"])
    out = capsys.readouterr().out
    for part in (
        "understanding expert",
        "2.13 B",
        "0.44 B",
        "3,222,760,208",
        "121,682,048",
        "6.45 GB in bf16",
        "393 in all",
    ):
        assert part in out, part
    assert "InternVLA-A1 2b" not in out


def test_json_of_all_variants(capsys: pytest.CaptureFixture[str]):
    main(["--json"])
    summaries = json.loads(capsys.readouterr().out)
    assert list(summaries) == ["3b", "2b", "tiny"]
    assert summaries["2b"]["total"] == 1_835_996_688
    assert summaries["2b"]["understanding_parts"]["lm_head"] == summaries["2b"]["dead"]["lm_head"] == 151_674 * 896


def test_unknown_variant(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["--variant", "7b"])
    message = capsys.readouterr().err
    assert all(variant in message for variant in ("7b", "3b", "2b", "tiny"))
