from __future__ import annotations

import pickle

import pytest
from tests.unit.test_errors import LEAVES

from instil.errors import ConfigError, InstilError, OutputExistsError
from instil.system import processes
from instil.system.progress import Display


def test_alone_there_is_one_process_and_it_does_everything() -> None:
    assert (processes.count(), processes.rank(), processes.is_main()) == (1, 0, True)
    assert processes.gather("mine") == ["mine"]
    assert processes.main_does(lambda: 3) == 3
    processes.wait()
    processes.leave()
    assert not processes.others_failed()
    with processes.telling() as mine:
        assert mine


def test_alone_an_error_of_the_main_process_is_its_own() -> None:
    def fail() -> None:
        raise ConfigError("what", got="got")

    with pytest.raises(ConfigError, match="what; got: got"):
        processes.main_does(fail)


def test_another_process_shows_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    display = Display()
    display.note("a note")
    display.warn("a warning")
    with display.bar("a bar", 3) as bar:
        bar.advance(1)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("kind", LEAVES)
def test_an_error_reaches_another_process_whole(kind: type[InstilError]) -> None:
    error = kind("what", got="got", allowed="allowed", mend="mend")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == str(error) == "what; got: got; allowed: allowed; mend: mend"


def test_an_os_error_reaches_it_whole_too() -> None:
    error = OutputExistsError("the folder exists", mend="name another")
    assert str(pickle.loads(pickle.dumps(error))) == "the folder exists; mend: name another"
