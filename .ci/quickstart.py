"""Checks the report of the quickstart: `code-search -o json`. Ends with 1 and one line per finding."""

import json
import sys

FAULTS = ["freeze_node", "kill_node", "panic_ward", "stall_ward"]


def findings(report):
    if report["schema"] != "wardkeep.quickstart/v1":
        yield f"the schema is {report['schema']!r}"
    for count in ("failed", "mismatched"):
        if report[count] != 0:
            yield f"{count}: {report[count]} of {report['queries']} queries"
    if report["queries"] < 1 or report["corpus"]["bytes"] < 1_000_000:
        yield f"too little was searched: {report['queries']} queries, {report['corpus']['bytes']} bytes"
    kinds = sorted(fault["kind"] for fault in report["faults"])
    if kinds != FAULTS:
        yield f"faults: {kinds}, not {FAULTS}"
    for fault in report["faults"]:
        if fault["healed_ms"] is None or fault["failed_calls"] != 0:
            yield f"not healed, or with failed calls: {fault}"
    if sum(wins > 0 for wins in report["wins"].values()) < 2:
        yield f"fewer than two nodes have won: {report['wins']}"
    single, replicated = report["single"]["p99_ms"], report["replicated"]["p99_ms"]
    if not replicated < single:
        yield f"p99 of replicated queries ({replicated} ms) is not below that of single ones ({single} ms)"
    sample = report["error_sample"] or {}
    if not all(sample.get(key) for key in ("id", "occurred_at", "machine", "group_hash", "user_message")):
        yield f"the error sample lacks something: {report['error_sample']}"


def main(path):
    with open(path, encoding="utf-8") as file:
        report = json.load(file)
    found = list(findings(report))
    for finding in found:
        print(f"quickstart: {finding}", file=sys.stderr)
    if not found:
        print(
            f"quickstart: {report['queries']} queries over {report['corpus']['files']} files, none failed; "
            f"p99 {report['single']['p99_ms']} ms single, {report['replicated']['p99_ms']} ms replicated; "
            f"{len(report['faults'])} faults healed"
        )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
