"""A live cluster (live_cluster) and a Prometheus that scrapes it, for tests and for the pictures of the dashboards."""
import json
import os
import pathlib
import re
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request

# Seconds until something that should have come counts as missing; how soon a failure is seen, and nothing else.
PATIENCE = 600


class LiveCluster:
    """A cluster whose one plan has been rolled out; `info` is what live_cluster prints. Ends with the block."""

    def __init__(self, *flags, binary="tests/live/live_cluster", bin_folder="."):
        self._folder = tempfile.TemporaryDirectory(prefix="live-")
        self._argv = [binary, f"--bin={bin_folder}", f"--directory={self._folder.name}", *flags]

    def __enter__(self):
        self._process = subprocess.Popen(self._argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        line = self._process.stdout.readline()
        if not line:
            self.__exit__()
            raise RuntimeError(f"{self._argv[0]} ended with {self._process.returncode}, see above")
        self.info = json.loads(line)
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._folder.cleanup()

    def command(self, command):
        """Has live_cluster carry out "dry-run" or "rollback", and waits until that is done."""
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        if not self._process.stdout.readline():
            raise RuntimeError(f"{command} failed, see above")

    def metrics_addresses(self):
        return [self.info["controller_metrics"], *(worker["metrics"] for worker in self.info["workers"])]


class Prometheus:
    """Debian's Prometheus on a free port, scraping `addresses` every two seconds. Ends with the block."""

    def __init__(self, addresses, rules=None):
        self._addresses = addresses
        self._rules = rules

    def __enter__(self):
        self._folder = tempfile.TemporaryDirectory(prefix="prometheus-")
        folder = pathlib.Path(self._folder.name)
        config = {
            "global": {"scrape_interval": "2s", "scrape_timeout": "2s", "evaluation_interval": "2s"},
            "rule_files": [os.path.abspath(self._rules)] if self._rules else [],
            "scrape_configs": [{"job_name": "ballast", "static_configs": [{"targets": self._addresses}]}],
        }
        (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
        self._log = folder / "log"
        with open(self._log, "w", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
                 "--web.listen-address=127.0.0.1:0", "--log.format=json"], stderr=log)
        try:
            while True:
                # In whatever order it says so.
                log = self._log.read_text(encoding="utf-8")
                match = re.search(r'"address":"(127\.0\.0\.1:[1-9]\d*)".*"msg":"(?:Listening on|TLS is disabled)', log)
                if match and "Server is ready to receive web requests" in log:
                    self.address = match.group(1)
                    return self
                self.wait(.1)
        except RuntimeError:
            self.__exit__()
            raise

    def __exit__(self, *_):
        self._process.terminate()
        self._process.wait()
        self._folder.cleanup()

    def get(self, path, **parameters):
        """The "data" of an answer of the HTTP API; ValueError with Prometheus' words for an error."""
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as e:
            raise ValueError(f"{parameters}: {json.load(e).get('error')}") from e

    def wait(self, seconds):
        """Passes the time until Prometheus may have scraped again; RuntimeError if it has ended meanwhile."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return
        raise RuntimeError("prometheus ended:\n" + self._log.read_text(encoding="utf-8"))

    def await_data(self, queries):
        """Asks until each of `queries` has given a sample that is a number; those that have not by the deadline."""
        missing = set(queries)
        deadline = time.monotonic() + PATIENCE
        while True:
            missing = {query for query in missing if not any(
                sample["value"][1] != "NaN" for sample in self.get("query", query=query)["result"])}
            if not missing or time.monotonic() > deadline:
                return missing
            self.wait(1)
