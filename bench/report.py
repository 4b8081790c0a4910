# SPDX-License-Identifier: BSD-3-Clause
"""From samples to rows, and from rows to tables. README.md says what the columns mean."""
import statistics

METRICS = ("ops_per_s", "mb_per_s", "cpu_us_per_op", "p50_us", "p99_us", "server_cpu_percent",
           "client_cpu_percent")


def ratio(a, b):
    return a / b if a is not None and b else None


def make_row(image, load, server, samples):
    row = {"image": image, "load": load.name, "title": load.title, "server": server.name,
           "peer": server.peer, "rounds": len(samples)}
    for metric in METRICS:
        values = [sample[metric] for sample in samples]
        row[metric] = None if None in values else statistics.median(values)
    rates = [sample["ops_per_s"] for sample in samples]
    row["spread_percent"] = 100 * (max(rates) - min(rates)) / row["ops_per_s"]
    row["samples"] = samples
    return row


def add_ratios(rows):
    """Fills in what compares a row with the others of its load."""
    def of(row, server, image):
        return next((other for other in rows if other["server"] == server and
                     other["load"] == row["load"] and other["image"] == image), None)

    for row in rows:
        peers = [other for other in rows if other["peer"] and other["load"] == row["load"] and
                 other["image"] == row["image"]]
        best = max(peers, key=lambda peer: peer["ops_per_s"], default=None)
        limit = of(row, "limit", "raw")
        own_raw = of(row, row["server"], "raw") if row["image"] != "raw" else None
        row["best_peer"] = best["server"] if best else None
        row["to_best_peer"] = ratio(row["ops_per_s"], best and best["ops_per_s"])
        row["cpu_to_best_peer"] = ratio(row["cpu_us_per_op"], best and best["cpu_us_per_op"])
        row["to_limit"] = ratio(row["ops_per_s"], limit and limit["ops_per_s"])
        row["to_own_raw"] = ratio(row["ops_per_s"], own_raw and own_raw["ops_per_s"])


def number(value, digits=0):
    return "-" if value is None else f"{value:,.{digits}f}"


def table(headings, lines):
    """Columns as wide as they must be; the first one to the left, the others to the right."""
    cells = [headings, *lines]
    widths = [max(len(line[column]) for line in cells) for column in range(len(headings))]
    return "\n".join(
        "  " + "  ".join(cell.ljust(width) if column == 0 else cell.rjust(width)
                         for column, (cell, width) in enumerate(zip(line, widths))).rstrip()
        for line in cells)


def load_table(rows):
    """The table of one load on one image."""
    headings = ["server", "ops/s", "MB/s", "CPU us/op", "p99 us", "server %", "client %",
                "spread %", "x best peer", "CPU x peer", "of limit"]
    lines = [[row["server"], number(row["ops_per_s"]), number(row["mb_per_s"]),
              number(row["cpu_us_per_op"], 2), number(row["p99_us"], 1),
              number(row["server_cpu_percent"]), number(row["client_cpu_percent"]),
              number(row["spread_percent"]), number(row["to_best_peer"], 2),
              number(row["cpu_to_best_peer"], 2), number(row["to_limit"], 2)] for row in rows]
    if rows[0]["image"] != "raw":
        headings.append("of own raw")
        for line, row in zip(lines, rows):
            line.append(number(row["to_own_raw"], 2))
    return f"{rows[0]['title']} ({rows[0]['load']}), {rows[0]['image']}\n{table(headings, lines)}\n"


def summary_table(rows, server):
    """One line a load for one server; empty when it did not take part."""
    headings = ["load", "ops/s", "best peer", "x best peer", "CPU x peer", "of limit",
                "of own raw"]
    lines = [[f"{row['title']}, {row['image']}", number(row["ops_per_s"]), row["best_peer"] or "-",
              number(row["to_best_peer"], 2), number(row["cpu_to_best_peer"], 2),
              number(row["to_limit"], 2), number(row["to_own_raw"], 2)]
             for row in rows if row["server"] == server]
    return f"Summary of {server}\n{table(headings, lines)}\n" if lines else ""


def memory_table(results):
    headings = ["server", "idle KiB", "wake-ups/s", "connections", "KiB each", "threads",
                "wake-ups/s", "afterwards KiB"]
    lines = [[name, number(r["idle_kib"]), number(r["idle_wakeups"], 1), str(r["connections"]),
              number(r["kib_per_connection"], 1), str(r["threads"]),
              number(r["connected_wakeups"], 1), number(r["afterwards_kib"])]
             for name, r in results.items()]
    return f"Idle: memory and wake-ups, raw\n{table(headings, lines)}\n"
