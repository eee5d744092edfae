#!/usr/bin/env python3
"""Adds up what ./check has run: count.py LABEL=FILE...

A FILE is meson's testlog.json (claims are counted from the TAP inside), pytest's junit .xml, or a .tap file. A
test that ended badly without naming a claim that failed (a crash, a timeout, too few claims) is one failure, and
so is a FILE that is not there. Names what failed and why something was skipped; last line
`N passed, N failed[, N skipped]`. Exit status 1 when anything failed or nothing passed.
"""
import json
import pathlib
import re
import sys
import xml.etree.ElementTree as ElementTree

TAP = re.compile(r"^(not )?ok\b\s*\d*\s*-?\s*(.*?)\s*(?:#\s*(skip|todo)\b\s*(.*))?$", re.I)
PLAN = re.compile(r"^1\.\.(\d+)")
# Programs that count for themselves (kerncheck) end with this line.
SUM = re.compile(r"^(\d+) passed, (\d+) failed(?:, (\d+) skipped)?$")

passed = 0
failed, skipped = [], []


def count_tap(label, text):
    """Counts the claims of one program; returns (claims, failures, complete)."""
    global passed
    seen = bad = 0
    plan = None
    for line in text.splitlines():
        if PLAN.match(line):
            plan = int(PLAN.match(line).group(1))
        claim = TAP.match(line)
        if not claim:
            continue
        seen += 1
        name = f"{label}: {claim.group(2)}"
        if (claim.group(3) or "").lower() == "skip":
            skipped.append(f"{name} ({claim.group(4) or 'no reason given'})")
        elif claim.group(1):
            bad += 1
            failed.append(name)
        else:
            passed += 1
    return seen, bad, plan is not None and seen >= plan


def count_meson(label, path):
    global passed
    for line in path.read_text().splitlines():
        test = json.loads(line)
        name = f"{label}: {test['name'].split(' / ')[-1]}"
        out = test.get("stdout") or ""
        result = test["result"]
        total = SUM.match(out.strip().splitlines()[-1]) if out.strip() else None
        if total:
            passed += int(total.group(1))
            failed.extend([f"{name}: see its output"] * int(total.group(2)))
            skipped.extend([f"{name}: see its output"] * int(total.group(3) or 0))
            seen, bad, complete = 1, int(total.group(2)), True
        else:
            seen, bad, complete = count_tap(name, out)
        if result == "SKIP":
            if not seen:
                skipped.append(f"{name} (the whole test)")
        elif result in ("OK", "EXPECTEDFAIL"):
            if not seen:
                passed += 1
            elif not complete:
                failed.append(f"{name}: fewer claims than planned")
        elif not bad:
            failed.append(f"{name}: {result.lower()}")


def count_junit(label, path):
    global passed
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        name = f"{label}: {case.get('classname', '')}.{case.get('name', '')}"
        skip = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(name)
        elif skip is not None:
            skipped.append(f"{name} ({skip.get('message', 'no reason given')})")
        else:
            passed += 1


def main():
    for argument in sys.argv[1:]:
        label, _, file = argument.partition("=")
        path = pathlib.Path(file)
        if not path.is_file():
            failed.append(f"{label}: did not run")
        elif path.suffix == ".json":
            count_meson(label, path)
        elif path.suffix == ".xml":
            count_junit(label, path)
        else:
            count_tap(label, path.read_text())
    for kind, names in (("skipped", skipped), ("FAILED", failed)):
        for name in names:
            print(f"{kind}: {name}")
    print(f"{passed} passed, {len(failed)} failed" + (f", {len(skipped)} skipped" if skipped else ""))
    sys.exit(bool(failed) or not passed)


main()
