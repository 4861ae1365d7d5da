"""Reads metrics as Prometheus's own Python client does.

In: METRICS (the URL), API_KEY (for a listener that takes one). Out: one line of JSON: the families by name, each with its type and
its samples, and what is wrong with its histograms.
"""

import json
import os
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

headers = {"Authorization": f"Bearer {os.environ['API_KEY']}"} if "API_KEY" in os.environ else {}
with urllib.request.urlopen(urllib.request.Request(os.environ["METRICS"], headers=headers)) as answer:
    content_type = answer.headers["Content-Type"]
    text = answer.read().decode()

families = {}
wrong = []
for family in text_string_to_metric_families(text):
    if family.name in families:
        wrong.append(f"{family.name} is there twice")
    if family.type == "unknown" or not family.documentation:
        wrong.append(f"{family.name} has no type or no help")
    families[family.name] = {
        "type": family.type,
        "samples": [[sample.name, sample.labels, sample.value] for sample in family.samples],
    }
    if family.type != "histogram":
        continue
    rows = {}
    for sample in family.samples:
        labels = {name: value for name, value in sample.labels.items() if name != "le"}
        rows.setdefault(json.dumps(labels, sort_keys=True), []).append(sample)
    for labels, samples in rows.items():
        buckets = [(float(s.labels["le"]), s.value) for s in samples if s.name.endswith("_bucket")]
        counts = [s.value for s in samples if s.name.endswith("_count")]
        if buckets != sorted(buckets) or [count for _, count in buckets] != sorted(count for _, count in buckets):
            wrong.append(f"{family.name}{labels}: buckets do not ascend")
        if buckets[-1][0] != float("inf") or counts != [buckets[-1][1]]:
            wrong.append(f"{family.name}{labels}: the last bucket is not the count")

print(json.dumps({"content_type": content_type, "families": families, "wrong": wrong}))
