#!/usr/bin/python3
"""Prints the outcome of every test case of one `bazel test`: PASSED, FAILED or SKIPPED and its name, a line each.

test_outcomes.py RUN EXIT_CODE BUILD_EVENTS_JSON: GoogleTest cases are counted one by one from the test.xml files that
Bazel's build events name; a test without such a file, and a build that failed, are a case each.
"""
import json
import sys
import urllib.parse
import xml.etree.ElementTree as ElementTree

NO_TESTS_MATCHED = 4  # Bazel's exit code


def cases_of(xml_path):
    """Yields (name, outcome, why) of the cases in a test.xml."""
    for case in ElementTree.parse(xml_path).getroot().iter("testcase"):
        name = ".".join(filter(None, [case.get("classname"), case.get("name")]))
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            yield name, "FAILED", ""
        elif skipped is not None or case.get("result") == "skipped":
            yield name, "SKIPPED", " ".join(((skipped.get("message") if skipped is not None else "") or "").split())
        elif case.get("status") != "notrun":
            yield name, "PASSED", ""


def main():
    run, exit_code, events_path = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    results = {}  # (label, run, shard) -> its last attempt
    broken = []
    try:
        with open(events_path, encoding="utf-8") as events:
            for line in events:
                event = json.loads(line)
                key = event["id"].get("testResult")
                if key and "testResult" in event:
                    results[(key["label"], key.get("run", 1), key.get("shard", 1))] = event["testResult"]
                completed = event["id"].get("targetCompleted")
                if completed and not event.get("completed", {}).get("success", False):
                    broken.append(completed["label"])
    except OSError as e:
        broken.append(str(e))
    failed = 0
    for (label, _, _), result in sorted(results.items()):
        status = result.get("status", "NO_STATUS")
        xml = [o["uri"] for o in result.get("testActionOutput", []) if o.get("name") == "test.xml" and "uri" in o]
        try:
            cases = list(cases_of(urllib.parse.unquote(urllib.parse.urlparse(xml[0]).path))) if xml else []
        except (OSError, ElementTree.ParseError) as e:
            cases = [("test.xml", "FAILED", str(e))]
        if status == "PASSED" and not cases:
            cases = [("", "PASSED", "")]
        if status != "PASSED" and not any(c[1] == "FAILED" for c in cases):
            cases.append((status, "FAILED", ""))
        for name, outcome, why in cases:
            failed += outcome == "FAILED"
            print(outcome, run, label, name, ": " + why if why else "")
    for label in broken:
        if not any(key[0] == label for key in results):
            failed += 1
            print("FAILED", run, label, "does not build")
    if exit_code not in (0, NO_TESTS_MATCHED) and not failed:
        print("FAILED", run, "bazel test ended with", exit_code)


main()
