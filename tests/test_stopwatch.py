"""The seconds of a work, over several processes."""

import pytest

from chitchat.training.stopwatch import NOTE_SECONDS, Stopwatch


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_seconds_go_on_where_an_earlier_process_stopped(tmp_path):
    """Stops: a resumed run that has all its minutes again, and one that reads the seconds of another."""
    clock, file = Clock(), tmp_path / "work" / "clock.json"
    first = Stopwatch(clock)
    first.keep_in(file, resume=False)
    clock.now += NOTE_SECONDS - 1
    first.note()
    assert not file.exists()
    clock.now += 1
    first.note()
    second = Stopwatch(clock)
    clock.now += 2
    second.keep_in(file, resume=True)
    assert second.seconds == pytest.approx(NOTE_SECONDS + 2)
    second.keep_in(tmp_path / "part.json", resume=True)
    clock.now += NOTE_SECONDS
    second.note()
    assert not (tmp_path / "part.json").exists()
    anew = Stopwatch(clock)
    anew.keep_in(file, resume=False)
    assert anew.seconds == 0.0


@pytest.mark.parametrize("content", ["", "{", "[]", '{"seconds": "x"}', "{}"])
def test_a_file_that_cannot_be_read_costs_its_seconds_alone(tmp_path, content):
    """Stops: a run that cannot be resumed since the disk was full when a figure was written."""
    file = tmp_path / "clock.json"
    file.write_text(content)
    stopwatch = Stopwatch(Clock())
    stopwatch.keep_in(file, resume=True)
    assert stopwatch.seconds == 0.0


def test_a_pause_does_not_count_also_when_it_ends_in_an_error():
    """Stops: cutting that eats the minutes of healing."""
    clock = Clock()
    stopwatch = Stopwatch(clock)

    def fail() -> None:
        with stopwatch.paused():
            clock.now += 50
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    clock.now += 10
    assert stopwatch.seconds == 10
    assert stopwatch.part(30.0, 0.5) == 20.0
    assert stopwatch.part(5.0, 0.5) == 10.0
