"""Configurations that Triton tuned are kept in the form in which fla-core reads them."""

import json
from pathlib import Path

import pytest

from validation import tuned

CONFIGURATION = {"num_ctas": 1, "maxnreg": None, "ir_override": None, "pre_hook": None}


def kept(folder: Path, kernel: str, key: list[object], timings: dict[int, object]) -> None:
    """A file as Triton's autotuner writes it: every configuration's attributes, with its milliseconds."""
    place = folder / f"hash-{kernel}-{len(list(folder.iterdir()))}"
    place.mkdir()
    told = [
        ({"kwargs": {"BK": size}, "num_warps": 4, "num_stages": 2, **CONFIGURATION}, t) for size, t in timings.items()
    ]
    (place / f"{kernel}.autotune.json").write_text(json.dumps({"key": key, "configs_timings": told}))


def test_the_fastest_of_each_key_is_kept_and_fla_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, out = tmp_path / "cache", tmp_path / "out"
    cache.mkdir()
    kept(cache, "chunk_fwd_kernel_h", [16, 128, "torch.bfloat16"], {32: [0.2, 0.1, 0.3], 64: [0.1, 0.1, 0.3]})
    kept(cache, "chunk_fwd_kernel_h", [4, 128, "torch.bfloat16"], {32: 0.2, 64: 0.4})
    assert tuned.main([str(cache), "--out", str(out)]) == 0
    fla = pytest.importorskip("fla.ops.utils.cache")
    monkeypatch.setenv("FLA_CONFIG_DIR", str(out))
    monkeypatch.setattr(fla, "FLA_CACHE_MODE", fla.FlaCacheMode.FUZZY)
    fla.load_config_file.cache_clear()

    def found(*key: object) -> int:
        config = fla.load_cached_config("chunk_fwd_kernel_h", fla.AutotuneKey(key))
        assert set(config) >= {"kwargs", "num_warps", "num_stages", "num_ctas"}
        return config["kwargs"]["BK"]

    assert found(16, 128, "torch.bfloat16") == 64
    assert found(4, 128, "torch.bfloat16") == 32
    assert found(5, 64, "torch.bfloat16") in (32, 64)  # a like shape
    assert fla.load_cached_config("chunk_fwd_kernel_h", fla.AutotuneKey((4, 128, "torch.float16"))) is None


def test_what_was_collected_before_stays(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for heads in (4, 8):
        cache = tmp_path / str(heads)
        cache.mkdir()
        kept(cache, "kernel", [heads], {32: 0.1})
        tuned.write(tuned.collected(cache), out)
    entries = json.loads((out / "kernel.json").read_text())["autotune_entries"].values()
    assert sorted(entry["autotune_key"] for entry in entries) == [[4], [8]]


def test_a_part_with_configurations_uses_them_and_every_part_keeps_what_it_tunes(tmp_path: Path) -> None:
    (tmp_path / "h100-sxm").mkdir()
    with_own: dict[str, str] = {}
    tuned.use("h100-sxm", with_own, tmp_path)
    assert with_own["FLA_CONFIG_DIR"] == str(tmp_path / "h100-sxm")
    assert with_own["FLA_CACHE_MODE"] == "fuzzy"
    without: dict[str, str] = {}
    tuned.use("a100-sxm", without, tmp_path)
    assert without == {"TRITON_CACHE_AUTOTUNING": "1"}
    chosen = {"FLA_CONFIG_DIR": "mine"}
    tuned.use("h100-sxm", chosen, tmp_path)
    assert chosen["FLA_CONFIG_DIR"] == "mine"


def test_no_and_broken_timings_end_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tuned.main([str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert "kept no timings" in capsys.readouterr().err
    (tmp_path / "kernel.autotune.json").write_text('{"key": [1]')
    assert tuned.main([str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "holds no timings of configurations" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
