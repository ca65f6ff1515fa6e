from pathlib import Path

import pytest

from serve_app.launch.configs import PACKAGED, located


@pytest.mark.parametrize("name", ["serve.yaml", "configs/serve.yaml"])
def test_without_a_checkout_the_packages_config_is_meant(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert located(name) == PACKAGED / "serve.yaml"
    assert located(name).exists()


def test_a_file_that_is_there_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("serve.yaml").touch()
    assert located("serve.yaml") == Path("serve.yaml")


@pytest.mark.parametrize("name", ["other.yaml", "elsewhere/serve.yaml", "/etc/serve.yaml"])
def test_any_other_name_stays(name: str) -> None:
    assert located(name) == Path(name)
