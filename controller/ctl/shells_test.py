#!/usr/bin/python3
"""The real bash, zsh and fish complete every verb, option and listed value of ballastctl, and nothing else; and mandoc
and groff have nothing to say against its manual page.

What there is to complete is read from --help.
"""
import os
import pathlib
import pty
import re
import subprocess
import tempfile
import unittest

CTL = pathlib.Path("controller/ctl/ballastctl").resolve()
ENVIRONMENT = {"PATH": f"{CTL.parent}:{os.environ['PATH']}", "LC_ALL": "C.UTF-8", "TERM": "dumb"}


def output(*argv, **options):
    return subprocess.run(argv, check=True, text=True, env=ENVIRONMENT, stdout=subprocess.PIPE, **options).stdout


class Verb:
    """What --help says of a verb: the words that lead to it, its options, and the verbs below it."""

    def __init__(self, path=()):
        self.path = path
        text = output(CTL, *path, "--help")
        options = re.findall(r"^  (?:-\w,)?--([\w-]+)(?: (\S+))?", text, re.M)
        self.options = {f"--{name}" for name, _ in options}
        self.values = {f"--{name}": sorted(match.group(1).split(",")) for name, kind in options
                       if (match := re.search(r"\{(.*)\}", kind or ""))}
        verbs = re.search(r"^Subcommands:\n((?:  .*\n)+)", text, re.M)
        self.verbs = sorted(re.findall(r"^  (\S+)", verbs.group(1), re.M)) if verbs else []


def all_verbs():
    found, todo = [], [()]
    while todo:
        verb = Verb(todo.pop())
        found.append(verb)
        todo += [(*verb.path, name) for name in verb.verbs]
    return found


VERBS = all_verbs()
assert len(VERBS) > 40, VERBS


def questions():
    """Command lines, the last word as far as it is typed, and what is to be offered."""
    everywhere = next(verb.options for verb in VERBS if not verb.path)
    for verb in VERBS:
        line = ["ballastctl", *verb.path]
        if verb.verbs:
            yield [*line, ""], verb.verbs
        yield [*line, "--"], sorted(verb.options | everywhere)
        for option, values in verb.values.items():
            yield [*line, option, ""], values
    yield ["ballastctl", "--controller", "get", "wat"], ["watch"]  # a value is no verb


def quoted(words):
    return " ".join("'" + word.replace("'", "'\\''") + "'" for word in words)


# Asks a shell's completion for each command line; prints the candidates of each, a line each, and then a line "%".
BASH = """
source <(ballastctl completion bash)
ask() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _ballastctl; printf '%s\\n' "${COMPREPLY[@]}" %; }
"""
# What _describe, _files and compset would show is printed: real ones need a terminal.
ZSH = """
compdef() { : }
_describe() { print -rl -- ${${(P)2}%%:*} }
source <(ballastctl completion zsh)
ask() { words=("$@"); CURRENT=$#; PREFIX=$words[-1]; _ballastctl; print % }
"""
FISH = """
ballastctl completion fish | source
function ask; complete -C "$argv" | string replace -r '\\t.*' ''; echo %; end
"""


class Completion(unittest.TestCase):
    def ask_all(self, shell, script, line):
        asked = list(questions())
        self.assertGreater(len(asked), len(VERBS))
        printed = output(*shell, script + "".join(f"ask {line(words)}\n" for words, _ in asked))
        answers = printed.split("%\n")[:-1]
        self.assertEqual(len(answers), len(asked))
        for (words, want), answer in zip(asked, answers):
            with self.subTest(words=words):
                self.assertEqual(sorted(answer.split()), want)

    def test_bash_completes_all_of_the_help_and_nothing_else(self):
        self.ask_all(["bash", "--norc", "-ec"], BASH, quoted)

    def test_zsh_completes_all_of_the_help_and_nothing_else(self):
        self.ask_all(["zsh", "-fec"], ZSH, quoted)

    def test_fish_completes_all_of_the_help_and_nothing_else(self):
        self.ask_all(["fish", "--no-config", "-c"], FISH, lambda words: quoted([" ".join(words)]))

    def test_bash_completes_what_a_person_types(self):
        """With readline on a terminal, which takes --option=value apart."""
        with tempfile.TemporaryDirectory() as folder:
            (pathlib.Path(folder) / "some-plan.json").touch()
            # ballastctl itself still answers the completion; typed, it shows its words.
            setup = ("source <(ballastctl completion bash); "
                     "ballastctl() { if [ \"$1\" = completion ]; then command ballastctl \"$@\"; "
                     "else printf '<%s>' \"$@\"; echo; fi; }\n")
            typed = ("ballastctl get eng\t\n"
                     "ballastctl plan --load some-p\t--po\teplb\n"
                     "ballastctl --output=y\tget gr\t\n"
                     "ballastctl score --plan=some-p\t\n"
                     "exit\n")
            terminal, end = pty.openpty()
            # No history is read or left behind.
            shell = subprocess.Popen(["bash", "--norc", "--noprofile", "-i"], cwd=folder,
                                     env={**ENVIRONMENT, "HISTFILE": "/dev/null", "HOME": folder}, stdin=end, stdout=end,
                                     stderr=end, start_new_session=True)
            os.close(end)
            os.write(terminal, (setup + typed).encode())
            seen = b""
            try:
                while part := os.read(terminal, 4096):
                    seen += part
            except OSError:  # the other end is closed
                pass
            shell.wait()
            os.close(terminal)
        for line in ("<get><engines>", "<plan><--load><some-plan.json><--policy><eplb>", "<--output=yaml><get><groups>",
                     "<score><--plan=some-plan.json>"):
            self.assertIn(line, seen.decode())


class Tls(unittest.TestCase):
    """What shells and `man` want to know needs no certificate."""

    def run_without_key(self, *argv):
        return subprocess.run([CTL, *argv], text=True, capture_output=True,
                              env={**ENVIRONMENT, "BALLAST_TLS_CERT": "/nonexistent/tls.crt"})

    def test_completion_and_man_need_no_files(self):
        for argv in (["man"], ["completion", "bash"], ["completion", "bash", "--", "get", "eng"]):
            with self.subTest(argv):
                done = self.run_without_key(*argv)
                self.assertEqual((done.returncode, done.stderr, done.stdout), (0, "", output(CTL, *argv)))

    def test_what_connects_does(self):
        for argv in (["get", "groups"], ["health", "127.0.0.1:1"], ["generate", "--worker=127.0.0.1:1", "x"], ["top", "--once"]):
            with self.subTest(argv):
                done = self.run_without_key(*argv)
                self.assertEqual((done.returncode, done.stdout), (1, ""))
                self.assertIn("--tls-key", done.stderr)


class ManualPage(unittest.TestCase):
    PAGE = output(CTL, "man")

    def test_nothing_is_wrong_with_it(self):
        lint = subprocess.run(["mandoc", "-T", "lint", "-W", "warning"], input=self.PAGE, text=True, capture_output=True)
        # A program has no date, so that it is the same bytes whenever it is built.
        found = [line for line in lint.stdout.splitlines() if "missing date" not in line]
        self.assertEqual((found, lint.stderr), ([], ""))
        groff = subprocess.run(["groff", "-man", "-Tutf8", "-ww", "-b", "-z"], input=self.PAGE, text=True, capture_output=True)
        self.assertEqual((groff.stderr, groff.returncode), ("", 0))

    def test_it_has_every_verb_and_option(self):
        text = output("mandoc", "-T", "utf8", "-O", "width=200", input=self.PAGE)
        text = re.sub(r".\x08", "", text)  # bold, as typewriters have it
        for verb in VERBS:
            with self.subTest(verb=verb.path):
                self.assertRegex(text, rf"(?m)^   {' '.join(verb.path)}( [A-Z\[].*)?$" if verb.path else "^BALLASTCTL")
                for option in verb.options:
                    self.assertIn(option, text)


if __name__ == "__main__":
    unittest.main(verbosity=2)
