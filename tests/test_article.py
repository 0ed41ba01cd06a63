"""The article says what the program says."""

from pathlib import Path

import pytest

from costmodel.analysis.reality import reality
from costmodel.errors import BadInput
from costmodel.hardware import load_hardware
from costmodel.report import article


def test_the_committed_article_is_what_its_template_and_the_program_give(capsys: pytest.CaptureFixture[str]) -> None:
    assert article.main(["--check"]) == 0, capsys.readouterr().err


def test_a_number_that_changed_makes_it_stale(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    template, page = tmp_path / "template.md", tmp_path / "reality-check.md"
    template.write_text("Gain: {{speedup dsa prefill 1M}}, {{carrier dsa prefill}}.\n")
    monkeypatch.setattr(article, "TEMPLATE", template)
    monkeypatch.setattr(article, "ARTICLE", page)
    assert article.main([]) == 0
    [row] = reality(["dsa"], [load_hardware("h100-sxm")], [2**20])
    assert f"Gain: {row['speedup']:.2g}×, indexer." in page.read_text()
    assert article.main(["--check"]) == 0
    page.write_text(page.read_text().replace("×", "0×"))
    assert article.main(["--check"]) == 1
    assert "is stale" in capsys.readouterr().err


def test_wrong_fills_are_told() -> None:
    with pytest.raises(BadInput, match="did you mean 'speedup'"):
        article.filled("{{speedupp dsa prefill}}")
    with pytest.raises(BadInput, match="speedup"):
        article.filled("{{speedup}}")
    with pytest.raises(BadInput, match="did you mean"):
        article.filled("{{speedup kdaa prefill}}")


def test_every_mechanism_of_the_thesis_is_in_the_article_and_its_sources_are_told() -> None:
    text = article.ARTICLE.read_text(encoding="utf-8")
    for heading in ("Kimi Linear", "DeepSeek sparse attention", "Mamba", "RWKV", "Text diffusion", "What was read"):
        assert any(line.startswith(f"## {heading}") for line in text.splitlines())
    assert "{{" not in text
