#!/usr/bin/python3
"""Pictures of the dashboards for docs/images: pictures.py PROMETHEUS NODE_MODULES [MINUTES [END]].

Runs every panel's query on a Prometheus (host:port) that has scraped a cluster, has main.jsx draw the panels with
Grafana's published panel library in a headless browser, and writes each dashboard at two widths in two themes. Not run
by `make test`: NODE_MODULES is what `npm ci --ignore-scripts` makes of package-lock.json here, 0.6 GB. END:
seconds since 1970, now by default.
"""
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
WIDTHS, THEMES = (1280, 1920), ("light", "dark")


def main(prometheus, modules, minutes="7", end=None):
    end = int(end or time.time())
    start = end - int(minutes) * 60
    variables = {"$__rate_interval": "30s", "$__range": f"{minutes}m", "$before": "5m", "$group": ".*", "$phase": ".*",
                 "$task": "[^*]*"}

    def ask(path, expression, **parameters):
        for name, value in variables.items():
            expression = expression.replace(name, value)
        query = urllib.parse.urlencode({"query": expression, **parameters})
        with urllib.request.urlopen(f"http://{prometheus}/api/v1/{path}?{query}") as answer:
            return json.load(answer)["data"]["result"]

    pictures = []
    for path in sorted((ROOT / "dashboards/generated/grafana").glob("*.json")):
        dashboard = json.loads(path.read_text())
        results = {panel["id"]: [
            ask("query", t["expr"], time=end) if t.get("instant") else
            ask("query_range", t["expr"], start=start, end=end, step=4) for t in panel["targets"]]
            for panel in dashboard["panels"] if panel["type"] != "row"}
        shown = {v["name"]: {"before": variables["$before"]}.get(v["name"], "All")
                 for v in dashboard["templating"]["list"] if v["name"] != "datasource"}
        for width in WIDTHS:
            for theme in THEMES:
                pictures.append({"name": f"dashboard-{path.stem}-{width}-{theme}", "dashboard": dashboard,
                                 "results": results, "range": {"from": start * 1000, "to": end * 1000},
                                 "theme": theme, "width": width, "variables": shown})
    out = ROOT / "docs/images"
    out.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        (pathlib.Path(folder) / "input.json").write_text(json.dumps(pictures))
        subprocess.run([f"{modules}/.bin/esbuild", HERE / "main.jsx", "--bundle", f"--outfile={folder}/main.js",
                        "--minify", "--format=iife", "--define:global=window", "--loader:.ttf=dataurl",
                        '--define:process.env.NODE_ENV="production"', "--log-level=error"],
                       check=True, env={**os.environ, "NODE_PATH": modules})
        subprocess.run(["node", HERE / "shoot.cjs", f"{folder}/main.js", f"{folder}/input.json", out], check=True,
                       env={**os.environ, "NODE_PATH": str(pathlib.Path.home() / ".cache/ballast/tools/web/node_modules")})
    for picture in pictures:
        file = out / f"{picture['name']}.png"
        subprocess.run([sys.executable, "-c", _SMALL, file], check=True)


# A picture of few colours: a palette makes it a fraction of its size.
_SMALL = """
import sys
from PIL import Image
image = Image.open(sys.argv[1]).convert("RGB")
image.quantize(128, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(sys.argv[1], optimize=True)
"""

if __name__ == "__main__":
    main(*sys.argv[1:])
