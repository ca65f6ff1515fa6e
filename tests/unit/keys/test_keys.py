"""The file of keys, and the command that writes it."""

import io
import re

import pytest
import yaml

from serve_app.__main__ import main
from serve_app.keys.digest import digest_of, make_key, same
from serve_app.keys.key_file import Key, KeyFileError, of_environment, read, write

HELLO = "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"


def test_a_digest_names_its_algorithm():
    assert digest_of("hello") == HELLO
    assert same(HELLO, digest_of("hello"))
    assert not same(HELLO, digest_of("hullo"))
    assert digest_of("\ud800") != HELLO


def test_keys_are_long_and_never_the_same():
    keys = {make_key() for _ in range(50)}
    assert len(keys) == 50
    assert all(re.fullmatch(r"sk-tts-[\w-]{43}", key) for key in keys)


def test_a_file_keeps_what_is_written_to_it(tmp_path):
    path = tmp_path / "keys.yaml"
    keys = (Key(name="a", hash=HELLO), Key(name="b", hash=digest_of("b"), concurrent=2, priority=5))
    write(path, keys)
    assert read(path) == keys
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("keys: [{name: a, hash: sk-tts-plain}]", "keys.0.hash"),
        ("keys: [{name: a}]", "keys.0.hash"),
        (f"keys: [{{name: 'a b', hash: '{HELLO}'}}]", "keys.0.name"),
        (f"keys: [{{name: a, hash: '{HELLO}', rate: 5}}]", "keys.0.rate"),
        (f"keys: [{{name: a, hash: '{HELLO}'}}, {{name: b, hash: '{HELLO}'}}]", "hash of 'b'"),
        (f"keys: [{{name: a, hash: '{HELLO}'}}, {{name: a, hash: '{digest_of('b')}'}}]", "name of"),
        ("keys: [sk-tts-plain", "not valid YAML"),
        ("[]", "dictionary"),
    ],
)
def test_a_faulty_file_is_refused_without_quoting_a_key(tmp_path, text, reason):
    path = tmp_path / "keys.yaml"
    path.write_text(text)
    with pytest.raises(KeyFileError, match=reason) as caught:
        read(path)
    assert "plain" not in str(caught.value)


def test_a_file_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(KeyFileError, match="No such file"):
        read(tmp_path / "keys.yaml")


def test_the_environment_has_keys_as_they_are():
    assert of_environment(None) == of_environment("") == ()
    assert [key.name for key in of_environment("hello, other")] == ["env", "env-2"]
    assert of_environment("hello")[0].hash == HELLO
    with pytest.raises(KeyFileError, match="TTS_API_KEY"):
        of_environment("a a")
    with pytest.raises(KeyFileError, match="TTS_API_KEY is set and has no key"):
        of_environment(" ,")


def test_the_command_makes_lists_and_removes_keys(tmp_path, capsys, monkeypatch):
    path = str(tmp_path / "keys.yaml")
    assert main(["keys", "new", "livekit", "--concurrent", "4", "--file", path]) == 0
    key = capsys.readouterr().out.strip()
    (entry,) = yaml.safe_load((tmp_path / "keys.yaml").read_text())["keys"]
    assert entry == {"name": "livekit", "hash": digest_of(key), "concurrent": 4}
    assert main(["keys", "new", "livekit", "--file", path]) == 2
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    assert main(["keys", "new", "own", "--stdin", "--file", path]) == 0
    assert "hello" not in capsys.readouterr().out
    assert main(["keys", "list", "--file", path]) == 0
    listed = capsys.readouterr().out
    assert "livekit\t-\t4 at once\tpriority 0" in listed
    assert key not in listed
    assert main(["keys", "remove", "livekit", "--file", path]) == 0
    assert [known.hash for known in read(tmp_path / "keys.yaml")] == [HELLO]
    assert main(["keys", "remove", "livekit", "--file", path]) == 2


def test_a_file_that_cannot_be_written_is_named(tmp_path, capsys):
    path = tmp_path / "no folder" / "keys.yaml"
    assert main(["keys", "new", "livekit", "--file", str(path)]) == 2
    said = capsys.readouterr()
    assert f"{path}: cannot be written: No such file or directory" in said.err
    assert not said.out  # a key that nobody knows of


def test_the_command_hashes_a_key_from_standard_input(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    assert main(["keys", "hash"]) == 0
    assert capsys.readouterr().out.strip() == HELLO
