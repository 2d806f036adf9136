"""Signals: what is under way is finished at the first, nothing at the second."""

import os
import signal

import pytest

from bloodjax.runtime import command


class AtOnce(Exception):
    pass


@pytest.fixture
def handlers():
    """As the program has them: both signals act at once."""

    def act(number, _):
        raise AtOnce(number)

    before = {number: signal.signal(number, act) for number in command.SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("first", command.SIGNALS)
@pytest.mark.parametrize("second", command.SIGNALS)
def test_the_first_is_noted_and_the_second_acts_at_once(handlers, first, second, capsys):
    with pytest.raises(AtOnce), command.defer_signals("step") as stop:  # also at the end
        assert stop.signal == 0
        os.kill(os.getpid(), first)
        assert stop.signal == first
        assert "stopping after this step; once more to stop at once" in capsys.readouterr().err
        with pytest.raises(AtOnce):
            os.kill(os.getpid(), second)


@pytest.mark.parametrize("number", command.SIGNALS)
def test_one_that_the_block_does_not_act_on_is_not_lost(handlers, number):
    work = []
    with pytest.raises(AtOnce), command.defer_signals("step"):
        os.kill(os.getpid(), number)
        work.append("done")
    assert work == ["done"]


@pytest.mark.parametrize("number", command.SIGNALS)
def test_afterwards_they_act_as_before(handlers, number):
    with command.defer_signals("step"):
        pass
    with pytest.raises(AtOnce):
        os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", command.SIGNALS)
def test_outside_the_process_ends_with_the_code_of_the_signal(handlers, number, capsys):
    command.exit_on_signals()
    with pytest.raises(SystemExit) as stop:
        os.kill(os.getpid(), number)
    assert stop.value.code == 128 + number
    assert "the same command goes on from there" in capsys.readouterr().err
