"""Ctrl-C: on the command line, and while a checkpoint is saved."""

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from marl_kl.cli.ctrl_c import STOPPING, end_on_second_interrupt
from marl_kl.storage.interrupts import interrupts_wait

_BUSY = """
import os, signal, time
from marl_kl.cli.ctrl_c import end_on_second_interrupt
signal.signal(signal.SIGINT, lambda *_: os.write(1, b"heard\\n"))  # and as deaf as a compilation
with end_on_second_interrupt():
    os.write(1, b"busy\\n")
    while True:
        time.sleep(60)
"""


def test_the_second_one_ends_a_process_that_does_not_listen():
    command = [sys.executable, "-c", _BUSY]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root) as process:
        for line in ("busy\n", "heard\n"):
            assert process.stdout.readline() == line
            process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
        assert STOPPING in process.stderr.read()


def test_existing_values_are_restored_afterwards(capfd):
    """Handler and wakeup; other signals and the first one end nothing."""
    ends = []
    before = signal.signal(signal.SIGINT, lambda *_: None), signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        with end_on_second_interrupt(lambda: ends.append(threading.current_thread())):
            for number in (signal.SIGUSR1, signal.SIGINT, signal.SIGUSR1):
                signal.raise_signal(number)
        assert not ends and capfd.readouterr().err.count(STOPPING) == 1
        with end_on_second_interrupt(lambda: ends.append(threading.current_thread())):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        assert len(ends) == 1 and ends[0] is not threading.main_thread()
        assert signal.set_wakeup_fd(-1) == -1
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGUSR1), before):
            signal.signal(number, handler)


def test_outside_the_main_thread_it_has_no_effect():
    thread = threading.Thread(target=lambda: end_on_second_interrupt().__enter__())
    thread.start()
    thread.join()
    assert signal.set_wakeup_fd(-1) == -1


def test_a_second_ctrl_c_does_not_wait():
    with pytest.raises(KeyboardInterrupt), interrupts_wait():
        signal.raise_signal(signal.SIGINT)
        with interrupts_wait():  # inside another one it is that one
            signal.raise_signal(signal.SIGINT)
        pytest.fail("the second one waited")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_on_the_command_line_a_ctrl_c_that_waited_is_not_the_second_one():
    ends = []
    with pytest.raises(KeyboardInterrupt), end_on_second_interrupt(lambda: ends.append(1)), interrupts_wait():
        signal.raise_signal(signal.SIGINT)
    assert not ends
    with pytest.raises(KeyboardInterrupt), end_on_second_interrupt(lambda: ends.append(1)), interrupts_wait():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    assert ends == [1]


def test_where_ctrl_c_is_ignored_it_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts_wait():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
