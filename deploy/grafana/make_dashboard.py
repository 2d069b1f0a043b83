#!/usr/bin/env python3
"""Writes dashboards/t6d.json, Grafana's dashboard of t6d, from the table below: four questions, each a row of panels.

usage: make_dashboard.py [--check]     --check: write nothing, fail when the file is not what this would write
A panel is (title, what it means, unit, width of 24, [(query, legend)]); one whose width is 4 is a number, others are
graphs. SEL stands for the label matchers that the dashboard's variables set.
"""

import json
import pathlib
import sys

OUT = pathlib.Path(__file__).parent / "dashboards/t6d.json"
SEL = 'job=~"$job", model_name=~"$model", instance=~"$instance"'
FAULTS = 'code=~"INTERNAL|UNKNOWN|DATA_LOSS|UNAVAILABLE|DEADLINE_EXCEEDED"'


def rate(metric, more="", by=""):
    """Per second, summed over what `by` does not name."""
    grouping = f" by ({by})" if by else ""
    return f"sum{grouping} (rate({metric}{{{SEL}{', ' + more if more else ''}}}[$__rate_interval]))"


def quantiles(histogram, *percents):
    return [(f"histogram_quantile({p / 100:g}, {rate(histogram + '_bucket', by='le')})", f"p{p}") for p in percents]


def each(metric):
    return [(f"sum by (instance) ({metric}{{{SEL}}})", "{{instance}}")]


ROWS = {
    "Is it up?": [
        ("Ready", "Replicas that take new requests", "none", 4, [(f"sum(t6:ready{{{SEL}}})", "ready")]),
        ("Replicas", "Replicas that answer Prometheus", "none", 4, [(f"count(t6:ready{{{SEL}}})", "replicas")]),
        ("Failed requests", "Share that failed by the server's fault; 429 is not among them", "percentunit", 4,
         [(f"({rate('t6:requests_total', FAULTS)} or vector(0)) / {rate('t6:requests_total')}", "failed")]),
        ("Youngest replica", "Time since the last start of a replica; its cache began empty", "s", 4,
         [(f"time() - max(process_start_time_seconds{{{SEL}}})", "since")]),
        ("Ready, by replica", "0 while it loads, drains or has failed", "none", 8, each("t6:ready")),
        ("Requests a second, by outcome", "As gRPC names outcomes, for HTTP too", "reqps", 12,
         [(rate("t6:requests_total", by="code"), "{{code}}")]),
        ("Memory", "Resident bytes; planned at start, so it should stay level", "bytes", 12,
         each("process_resident_memory_bytes")),
    ],
    "Is it fast?": [
        ("Time to first token", "From submission, waiting included", "s", 8,
         quantiles("vllm:time_to_first_token_seconds", 50, 95, 99)),
        ("Time between two tokens", "Of one answer; people read about ten tokens a second", "s", 8,
         quantiles("vllm:inter_token_latency_seconds", 50, 95, 99)),
        ("Time to last token", "From submission", "s", 8, quantiles("vllm:e2e_request_latency_seconds", 50, 95)),
        ("Tokens a second", "Generated, computed for prompts, and taken from the cache instead", "none", 12, [
            (rate("vllm:generation_tokens_total"), "generated"),
            (f"{rate('vllm:prompt_tokens_total')} - {rate('vllm:prefix_cache_hits_total')}", "prompt, computed"),
            (rate("vllm:prefix_cache_hits_total"), "prompt, cached")]),
        ("One step of the engine, by phase", "Mean; plan and commit run on the host, forward on the device", "s", 6,
         [(f"{rate('t6:step_seconds_total', by='phase')} / ignoring(phase) group_left {rate('t6:steps_total')}",
           "{{phase}}")]),
        ("Busy", "Share of its time that a replica spends in steps", "percentunit", 6,
         [(rate("t6:step_seconds_total", by="instance"), "{{instance}}")]),
    ],
    "Is the cache working?": [
        ("Cached now", "Share of prompt tokens that were found in the cache", "percentunit", 4,
         [(f"{rate('vllm:prefix_cache_hits_total')} / {rate('vllm:prefix_cache_queries_total')}", "cached")]),
        ("Cached prompt tokens", "The same over time, by replica: affinity keeps all of them high", "percentunit", 10,
         [(f"{rate('vllm:prefix_cache_hits_total', by='instance')}"
           f" / {rate('vllm:prefix_cache_queries_total', by='instance')}", "{{instance}}")]),
        ("Pages held by requests", "Reusable pages count as free; near 100 % requests wait for pages", "percentunit", 10,
         [(f"max by (instance) (vllm:kv_cache_usage_perc{{{SEL}}})", "{{instance}}")]),
        ("Factors, by tier", "Bytes of pages held or cached", "bytes", 8,
         [(f"sum by (instance, tier) (t6:factor_bytes{{{SEL}}})", "{{instance}} {{tier}}")]),
        ("Pages dropped a second", "Prefixes that gave way to others; many of them and few hits: the cache is too small",
         "none", 8, [(rate("t6:prefix_evictions_total", by="instance"), "{{instance}}")]),
        ("Prefills shared and requests preempted, a second",
         "Shared: waited for a prefix that another was computing. Preempted: pages ran out", "none", 8,
         [(rate("t6:prefill_waits_shared_total"), "shared"), (rate("vllm:num_preemptions_total"), "preempted")]),
    ],
    "Who waits?": [
        ("Waiting now", "Requests in line, all replicas", "none", 4, [(f"sum(vllm:num_requests_waiting{{{SEL}}})", "waiting")]),
        ("Waiting, by replica", "One line long and others empty: repair the balancing", "none", 10,
         each("vllm:num_requests_waiting")),
        ("Running, and the most that can", "Beyond --max-num-seqs they wait", "none", 10,
         each("vllm:num_requests_running") + [(f"max(t6:max_num_seqs{{{SEL}}})", "most, each")]),
        ("Time in line", "From submission to the first step", "s", 8, quantiles("vllm:request_queue_time_seconds", 50, 95, 99)),
        ("Prompt tokens a second, by replica", "How even the load is", "none", 8,
         [(rate("vllm:prompt_tokens_total", by="instance"), "{{instance}}")]),
        ("How answers end, a second", "abort: cancelled by the client or by its deadline", "none", 8,
         [(rate("vllm:request_success_total", by="finished_reason"), "{{finished_reason}}")]),
    ],
}


def variable(name, label, query, **more):
    return {"name": name, "label": label, "type": "query", "datasource": {"type": "prometheus", "uid": "${datasource}"},
            "query": {"query": query, "refId": name}, "definition": query, "refresh": 2, "sort": 1, "multi": True,
            "includeAll": True, "allValue": ".*", "current": {"text": ["All"], "value": ["$__all"]}, **more}


def panel(number, title, meaning, unit, width, targets, x, y):
    is_stat = width == 4
    defaults = {"unit": unit, "min": 0, "color": {"mode": "thresholds" if is_stat else "palette-classic"},
                "thresholds": {"mode": "absolute", "steps": [{"color": "blue", "value": None}]}}
    if not is_stat:
        defaults["custom"] = {"fillOpacity": 8, "lineWidth": 2, "showPoints": "never", "spanNulls": False}
    options = ({"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}, "colorMode": "value",
                "graphMode": "area"} if is_stat else
               {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi", "sort": "desc"}})
    return {"id": number, "type": "stat" if is_stat else "timeseries", "title": title, "description": meaning,
            "datasource": {"type": "prometheus", "uid": "${datasource}"}, "gridPos": {"x": x, "y": y, "w": width, "h": 7},
            "fieldConfig": {"defaults": defaults, "overrides": []}, "options": options,
            "targets": [{"refId": chr(ord("A") + i), "expr": query, "legendFormat": legend, "range": True,
                         "datasource": {"type": "prometheus", "uid": "${datasource}"}}
                        for i, (query, legend) in enumerate(targets)]}


def dashboard():
    panels, number, y = [], 1, 0
    for question, row in ROWS.items():
        panels.append({"id": number, "type": "row", "title": question, "collapsed": False, "panels": [],
                       "gridPos": {"x": 0, "y": y, "w": 24, "h": 1}})
        number, y, x = number + 1, y + 1, 0
        for title, meaning, unit, width, targets in row:
            if x + width > 24:
                x, y = 0, y + 7
            panels.append(panel(number, title, meaning, unit, width, targets, x, y))
            number, x = number + 1, x + width
        y += 7
    return {
        "uid": "t6d", "title": "t6d", "tags": ["t6d"], "editable": True, "graphTooltip": 1, "schemaVersion": 38, "version": 1,
        "refresh": "10s", "time": {"from": "now-30m", "to": "now"}, "timezone": "browser", "annotations": {"list": []},
        "links": [], "panels": panels,
        "templating": {"list": [
            {"name": "datasource", "label": "Source", "type": "datasource", "query": "prometheus", "current": {}},
            variable("job", "Job", "label_values(t6:ready, job)"),
            variable("model", "Model", 'label_values(t6:ready{job=~"$job"}, model_name)'),
            variable("instance", "Replica", 'label_values(t6:ready{job=~"$job", model_name=~"$model"}, instance)'),
        ]},
    }


def main():
    text = json.dumps(dashboard(), indent=1) + "\n"
    if "--check" in sys.argv[1:]:
        return 0 if OUT.exists() and OUT.read_text() == text else f"{OUT} is not what {__file__} writes"
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
