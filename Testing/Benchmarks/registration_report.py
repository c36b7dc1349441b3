"""The benchmark's table and its verdict on every bar, from the records of `registration.py`."""

from __future__ import annotations

import numpy as np

OURS = ("MedFusion, GPU", "MedFusion")
_SAY = {
    "mean": ("mean error", "mm"), "p95": ("95th percentile", "mm"), "worst": ("worst error", "mm"),
    "seconds": ("time", "s"), "megabytes": ("peak memory", "MB"), "folded": ("folded", "%"),
}  # fmt: skip


def figures(records):
    """{"mean", "p95", "worst" mm; median "seconds" and "cpu"; most "megabytes", "folded" %; "count", "lost"}."""
    good = [r for r in records if "error" in r]
    if not good:
        return {"count": 0, "lost": len(records)}
    error = np.array([r["error"] for r in good])
    return {
        "mean": error.mean(),
        "p95": np.percentile(error, 95),
        "worst": error.max(),
        "seconds": np.median([r["seconds"] for r in good]),
        "cpu": np.median([r["cpu_seconds"] for r in good]),
        "megabytes": max(r["megabytes"] for r in good),
        "folded": max(r.get("folded", 0.0) for r in good),
        "count": len(good),
        "lost": len(records) - len(good),
    }


def by_tool(arm, records):
    """{tool: figures} of the cases that every tool has been given."""
    records = [r for r in records if r["arm"] == arm.name]
    names = [name for name in arm.names() if any(r["tool"] == name for r in records)]
    given = [{(r["case"], r["seed"]) for r in records if r["tool"] == name} for name in names]
    common = set.intersection(*given) if given else set()
    return {
        name: figures([r for r in records if r["tool"] == name and (r["case"], r["seed"]) in common]) for name in names
    }


def line(arm, case, seed, of_case, records):
    """A finished case in a line, with the running means."""
    parts = []
    for record in of_case:
        means = figures([r for r in records if r["arm"] == arm.name and r["tool"] == record["tool"]])
        if "problem" in record:
            parts.append(f"{record['tool']} gave up ({record['problem']})")
            continue
        parts.append(
            f"{record['tool']} {record['error']:.2f} mm {record['seconds']:.2f} s {record['megabytes']:.0f} MB"
            f" [mean {means['mean']:.2f} mm {means['seconds']:.2f} s]"
        )
    return f"{arm.name}, {case} {seed}: " + "; ".join(parts)


def table(arms, records):
    """Markdown: a row per arm and tool, then a line per bar."""
    rows = [
        "| arm | tool | cases | mean mm | 95 % mm | worst mm | s | CPU s | x fastest peer | peak MB | folded % |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    verdicts = []
    for arm in arms:
        tools = by_tool(arm, records)
        if not any(found["count"] for found in tools.values()):
            continue
        times = [found["seconds"] for name, found in tools.items() if name not in OURS and found["count"]]
        for name, found in tools.items():
            if not found["count"]:
                rows.append(f"| {arm.title} | {name} | 0 of {found['lost']} |" + " |" * 8)
                continue
            cases = str(found["count"]) + (f" ({found['lost']} lost)" if found["lost"] else "")
            ratio = f"{found['seconds'] / min(times):.2f}" if times else ""
            folded = f"{found['folded']:.2f}" if arm.model == "deformable" else ""
            rows.append(
                f"| {arm.title} | {name} | {cases} | {found['mean']:.3f} | {found['p95']:.3f} | {found['worst']:.2f}"
                f" | {found['seconds']:.2f} | {found['cpu']:.2f} | {ratio} | {found['megabytes']:.0f} | {folded} |"
            )
        verdicts += [judged(arm, bar, tools) for bar in arm.bars]
    threads = {r["threads"] for r in records}
    note = (
        f"Every tool on {'/'.join(str(t) for t in sorted(threads))} CPU thread(s), one at a time, one after the other."
    )
    return "\n".join(
        [
            *rows,
            "",
            note,
            "",
            "| arm | bar | MedFusion | bar's value | met |",
            "|---|---|---|---|---|",
            *filter(None, verdicts),
        ]
    )


def judged(arm, bar, tools):
    """A row: the bar, our figure, the limit, whether it is met. None where it cannot be told."""
    ours = next((tools[name] for name in OURS if name in tools), None)
    peers = {name: found for name, found in tools.items() if name not in OURS and found["count"]}
    if not ours or not ours["count"]:
        return None
    say, unit = _SAY[bar.figure]
    if bar.of is None:
        limit, what = bar.limit, f"{say} <= {bar.limit:g} {unit}"
    else:
        if bar.of == "fastest":
            peers = {name: found for name, found in peers.items() if found["mean"] < 1.0} or peers
        elif bar.of != "best":
            peers = {name: found for name, found in peers.items() if name == bar.of}
        if not peers:
            return None
        name = min(peers, key=lambda n: peers[n][bar.figure])
        limit, what = bar.limit * peers[name][bar.figure], f"{say} <= {bar.limit:g} x {bar.of} ({name})"
        if bar.of == name:
            what = f"{say} <= {bar.limit:g} x {name}"
    value = ours[bar.figure]
    # A tool that gives up on a case has not met anything.
    met = value <= limit and not ours["lost"]
    return f"| {arm.title} | {what} | {value:.3g} {unit} | {limit:.3g} {unit} | {'yes' if met else 'NO'} |"
