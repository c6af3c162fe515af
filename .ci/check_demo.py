"""Fail unless `make demo` left a complete job: every pair scored once, faces found, a report to open."""

import json
import sys
from pathlib import Path

import pyarrow.parquet as pq

job = Path(sys.argv[1])
manifest, results = pq.read_table(job / "manifest"), pq.read_table(job / "results")
assert (job / "_SUCCESS").exists(), "the job did not finish"
assert sorted(manifest["row_id"].to_pylist()) == sorted(results["row_id"].to_pylist()), "a row is lost or doubled"
assert set(results["status"].to_pylist()) == {"ok"}, "a drawn pair could not be scored"
assert any(box is not None for box in results["box_px"].to_pylist()), "no face was found"
assert any(results["words"].to_pylist()), "no word was found"

flagged = [row for row in results.to_pylist() if row["verdict"] in ("manipulated", "review")]
assert flagged and all(row["caption"] for row in flagged), "a flagged pair has no caption"

corpus = {str(record["id"]): record for record in json.loads(Path("out/demo/corpus/metadata/test.json").read_text())}
rows = results.select(["custom_id", "verdict"]).to_pylist()
right = sum((row["verdict"] == "manipulated") == (corpus[row["custom_id"]]["fake_cls"] != "orig") for row in rows)
assert right / len(rows) > 0.75, f"only {right} of {len(rows)} verdicts are right"

report = (job / "report" / "index.html").read_text(encoding="utf-8")
assert "http://" not in report.replace("http://www.w3.org", "") and "data:image" in report, "the report is not whole"
assert flagged[0]["caption"][:20] in report, "the report shows no caption"
print(f"demo: {len(rows)} pairs, {right} verdicts right, report of {len(report) // 1024} KiB")
