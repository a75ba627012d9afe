#!/usr/bin/python3
"""ballastctl on a real terminal. top: keys, the size, and that the terminal is given back however it ends; and the bar that
shows how far long work has come."""
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import tempfile
import termios
import unittest

CTL, CONTROLLER = "controller/ctl/ballastctl", "controller/ballast-controller"
# Seconds until what should be seen counts as missing; how soon a failure is seen, and nothing else.
PATIENCE = 200
ENTER, LEAVE = b"\x1b[?1049h", b"\x1b[?1049l"


class Program:
    """The program on a terminal of its own, of 100 x 30."""

    def __init__(self, *argv, ignored=None):
        """`ignored`: a signal that it inherits as ignored."""
        self._terminal, self._end = pty.openpty()
        self.resize(100, 30)
        self.before = termios.tcgetattr(self._end)

        def prepare():
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
            if ignored is not None:
                signal.signal(ignored, signal.SIG_IGN)

        self.process = subprocess.Popen([CTL, *argv], stdin=self._end, stdout=self._end, stderr=self._end,
                                        start_new_session=True, preexec_fn=prepare)
        self.seen = b""  # behind what was awaited
        self.printed = b""  # all of it

    def resize(self, columns, lines):
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def type(self, keys):
        os.write(self._terminal, keys)

    def _read(self):
        part = os.read(self._terminal, 65536)
        self.seen += part
        self.printed += part

    def await_text(self, pattern):
        """Reads until the pattern is seen, and forgets what was seen up to its end."""
        while not (match := re.search(pattern, self.seen, re.S)):
            if not select.select([self._terminal], [], [], PATIENCE)[0]:
                raise AssertionError(f"no {pattern!r} in {self.seen!r}")
            self._read()
        self.seen = self.seen[match.end():]
        return match

    def end(self):
        """Its exit status; its last words are in `seen`."""
        status = self.process.wait(PATIENCE)
        while select.select([self._terminal], [], [], 0)[0]:
            self._read()
        self.after = termios.tcgetattr(self._end)
        os.close(self._end)
        os.close(self._terminal)
        return status


class TopOnATerminal(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.controller = subprocess.Popen(
            [CONTROLLER, f"--store={cls.folder.name}/store.db", "--listen=127.0.0.1:0", "--metrics-listen=127.0.0.1:0",
             "--console-listen=none", "--group=name=alpha,size=2", "--group=name=beta,size=3"],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        ready = cls.controller.stdout.readline()
        cls.flags = ["--interval=3600", "--controller=" + re.search(r"grpc=(\S+)", ready).group(1)]

    @classmethod
    def tearDownClass(cls):
        cls.controller.terminate()
        cls.controller.communicate()
        cls.folder.cleanup()

    def assert_given_back(self, top):
        self.assertIn(LEAVE, top.seen)
        self.assertEqual(top.after, top.before)

    def test_keys_and_sizes_are_obeyed(self):
        top = Program("top", *self.flags)
        top.await_text(re.escape(ENTER) + rb".*\[l load\].*> alpha +forming.* 0/2 .*  beta .* 0/3 ")
        top.type(b"w")
        top.await_text(rb"\[w waiting\].*> alpha")
        top.type(b"g")
        top.await_text(rb"  alpha .*> beta ")
        top.resize(31, 30)
        narrow = top.await_text(rb"\x1b\[H(\d\d:\d\d:\d\d UTC  q quit  g next g)\x1b\[K.*> beta.*?\x1b\[J")
        self.assertEqual(len(narrow.group(1)), 30, "all columns but the last")
        top.type(b"q")
        self.assertEqual(top.end(), 0)
        self.assert_given_back(top)

    def test_a_signal_gives_the_terminal_back(self):
        for name, send in (("Ctrl-C", lambda top: top.type(b"\x03")), ("SIGTERM", lambda top: top.process.terminate())):
            with self.subTest(name):
                top = Program("top", *self.flags)
                top.await_text(rb"> alpha")
                send(top)
                self.assertEqual(top.end(), -(signal.SIGINT if name == "Ctrl-C" else signal.SIGTERM))
                self.assert_given_back(top)

    def test_what_was_ignored_stays_ignored(self):
        top = Program("top", *self.flags, ignored=signal.SIGTERM)
        top.await_text(rb"> alpha")
        top.process.terminate()
        top.type(b"w")
        top.await_text(rb"\[w waiting\]")
        top.type(b"q")
        self.assertEqual(top.end(), 0)
        self.assert_given_back(top)

    def test_once_and_errors_leave_the_terminal_alone(self):
        for argv, status, said in ((["--once"], 0, rb"> alpha"), (["--group=none"], 1, rb"there is no group 'none'")):
            with self.subTest(argv):
                top = Program("top", *self.flags, *argv)
                top.await_text(said)
                self.assertEqual(top.end(), status)
                self.assertNotIn(b"\x1b", top.printed)
                self.assertEqual(top.after, top.before)

    def test_a_pipe_gets_one_frame(self):
        printed = subprocess.run([CTL, "top", *self.flags, "--group=beta"], check=True, capture_output=True, text=True).stdout
        self.assertRegex(printed, r"(?s)^\d\d:\d\d:\d\d UTC .*\n> beta +forming [^\x1b]*\n$")

    def test_long_work_shows_how_far_it_is(self):
        with tempfile.TemporaryDirectory() as folder:
            # So much that a million steps take minutes on any machine.
            load = json.dumps({"logical_count": [[1 + e % 7 for e in range(256)]] * 16})
            for name, text in (("load.json", load),
                               ("cost.json", '{"format": "ballast.cost_model/v1"}')):
                with open(f"{folder}/{name}", "w", encoding="utf-8") as file:
                    file.write(text)
            subprocess.run([CTL, "plan", f"--load={folder}/load.json", "--policy=eplb", "--gpus=8", "--slots-per-gpu=33",
                            f"--out={folder}/plan.json"], check=True, stdout=subprocess.DEVNULL)
            simulate = ["simulate", f"--plan={folder}/plan.json", f"--load={folder}/load.json",
                        f"--cost-model={folder}/cost.json"]
            work = Program(*simulate, "--steps=1000000")
            work.await_text(rb"\rsimulating \[[# ]{40}\] +\d+ %  \d+ s[^\r]*\x1b\[K")
            work.process.terminate()
            work.end()
            printed = subprocess.run([CTL, *simulate, "--steps=10"], check=True, capture_output=True, text=True)
            self.assertEqual(printed.stderr, "")


if __name__ == "__main__":
    unittest.main(verbosity=2)
