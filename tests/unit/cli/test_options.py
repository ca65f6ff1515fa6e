import subprocess

import pytest

from serve_app.cli.options import parsed


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["-o", "a.ogg"], "opus"),
        (["-o", "A.MP3"], "mp3"),
        (["-o", "-"], "wav"),
        (["-o", "-", "--format", "flac"], "flac"),
        (["-o", "audio", "--format", "pcm"], "pcm"),
        ([], None),
    ],
)
def test_the_format_follows_from_the_name(arguments: list[str], expected: str | None) -> None:
    assert parsed(["text", *arguments]).format == expected


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["a", "-o", "a.txt"], "no format is known"),
        (["a", "--format", "mp3"], "is of --output"),
        (["a", "-f", "b"], "either a text or --file"),
        (["a", "-s", "5"], "not within 0.25 and 4"),
        (["a", "-s", "fast"], "invalid speed value"),
        (["a", "--timeout", "-1"], "not between 0 and 86400"),
        (["a", "--timeout", "inf"], "not between 0 and 86400"),
        (["a", "--timeout", "soon"], "invalid timeout value"),
    ],
)
def test_wrong_usage_is_explained(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parsed(arguments)
    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err


def test_the_environment_of_openai_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "https://tts.example/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    options = parsed(["a"])
    assert (options.base_url, options.api_key) == ("https://tts.example/v1", "sk-1")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_gets_completions(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parsed(["--print-completion", shell])
    assert not ended.value.code
    script = capsys.readouterr().out
    assert "language" in script
    if shell == "bash":
        ask = "COMP_WORDS=(tts-stream --form); COMP_CWORD=1; _shtab_tts_stream; echo $COMPREPLY"
        done = subprocess.run(["bash", "-c", f"{script}\n{ask}"], capture_output=True, text=True)
        assert done.stdout.strip() == "--format"
