"""One table of what the bench `gpu` found out and what others took at the same shapes. Nothing is measured here."""


def merge(ours, peers):
    """Rows of ours in their order, each with all that was measured beside it; the quickest of these is compared."""
    measured = (peers or {}).get("rows", {})
    ceilings = (peers or {}).get("ceilings", {})
    rows = [merged_row(row, measured.get(row["name"], []), ceilings) for row in ours["rows"]]
    return {
        "gpu": ours.get("gpu"), "version": ours.get("version"), "complete": ours.get("complete", False),
        "wrong": ours.get("wrong", 0), "checks": ours.get("checks"), "limits": ours.get("limits"),
        "ceilings": ceilings, "peers": {k: v for k, v in (peers or {}).items() if k not in ("rows", "ceilings")},
        "rows": rows, "models": ours.get("models", []), "not_covered": ours.get("not_covered", []),
        "same_card": same_card(ours, peers),
    }


def same_card(ours, peers):
    """Whether both ran on cards of one name; ratios between two cards say nothing. None where one of them does not say."""
    names = [(ours.get("gpu") or {}).get("name"), ((peers or {}).get("gpu") or {}).get("name")]
    return None if None in names else names[0] == names[1]


def merged_row(row, peers, ceilings):
    """A row with its peers, and its share of the arithmetic that was measured where arithmetic bounds it."""
    us = (row.get("us") or {}).get("median")
    done = [peer for peer in peers if peer.get("us")]
    best = min(done, key=lambda peer: peer["us"]["median"], default=None)
    merged = {**row, "peers": peers, "best_peer": best and best["peer"], "times_as_fast": None}
    if us and best:
        merged["times_as_fast"] = best["us"]["median"] / us
    rate = ceilings.get("bf16_per_s")
    if us and rate and row.get("bound") == "arithmetic":
        merged["percent_of_measured"] = 100 * row["flops"] / (us / 1e6) / rate
    return merged


def number(value, digits=1):
    """A number, or a dash where there is none."""
    return "–" if value is None else f"{value:,.{digits}f}"


def verdict(row):
    """Whether the output was right."""
    if row.get("error"):
        return f"not measured: {row['error']}".replace("not measured: not measured", "not measured")
    check = row.get("check") or {}
    if not check.get("right"):
        return f"**WRONG** ({check.get('differ')} of {check.get('compared')}, {check.get('not_finite')} not finite)"
    if row.get("stays") is False:
        return "**MOVES**"
    return "equal" if not check.get("differ") else f"within {check['relative_error']:.0e}"


def met(target, is_met):
    """A target, and whether it was met."""
    return "–" if target is None else target if is_met is None else f"{target}: {'yes' if is_met else 'no'}"


def peer_cell(row):
    """The quickest of the others, or why there is none."""
    if row["best_peer"]:
        best = next(peer for peer in row["peers"] if peer["peer"] == row["best_peer"])
        return f"{best['peer']} {number(best['us']['median'])}"
    errors = [f"{peer['peer']}: {peer['error']}" for peer in row["peers"] if peer.get("error")]
    return "; ".join(errors).replace("|", "/").replace("\n", " ")[:120] or "not measured"


HEAD = ("| Row | ours, us | % of measured | % of data sheet | % of roofline | first milestone | impossible | quickest other, us "
        "| times as fast | output |\n|---|---|---|---|---|---|---|---|---|---|")


def line(row):
    """One row of the table."""
    us = (row.get("us") or {}).get("median")
    ratio = row["times_as_fast"]
    cells = [
        row["name"], number(us), number(row.get("percent_of_measured"), 0), number(row.get("percent_of_sheet"), 0),
        number(row.get("percent_of_roofline"), 0), met(row.get("first_milestone"), row.get("first_milestone_met")),
        met(row.get("impossible"), row.get("impossible_met")), peer_cell(row), number(ratio, 2), verdict(row),
    ]
    return "| " + " | ".join(cells) + " |"


def model_lines(model):
    """The rows of a whole model."""
    if model.get("error"):
        return [f"| {model['name']} | not measured: {model['error']} | – | – | – | – |"]
    lines = []
    for test in model["tests"]:
        if test.get("error"):
            lines.append(f"| {model['name']} | {test['test']}: {test['error']} | – | – | – | – |")
            continue
        lines.append("| " + " | ".join([
            model["name"], test["test"], number(test["tokens_per_s"]), number(test["step_ms"], 3),
            number(test["percent_of_copies"], 0), number(test["percent_of_sheet_bandwidth"], 0),
        ]) + " |")
    return lines


def ceiling_line(merged):
    """What was measured of the card itself."""
    limits, ceilings = merged["limits"] or {}, merged["ceilings"]
    copies = (limits.get("copy_bytes_per_s") or {}).get("within")
    sheet = limits.get("sheet") or {}
    scaled = lambda value, unit: None if value is None else value / unit
    return (f"Copies: {number(scaled(copies, 1e9), 0)} GB/s by ours, {number(scaled(ceilings.get('copy_bytes_per_s'), 1e9), 0)} by "
            f"PyTorch, {number(scaled(sheet.get('bytes_per_s'), 1e9), 0)} by the data sheet. 8192^3 in bf16: "
            f"{number(scaled(ceilings.get('bf16_per_s'), 1e12), 0)} TFLOP/s by cuBLAS, "
            f"{number(scaled(sheet.get('bf16_per_s'), 1e12), 0)} by the data sheet.")


def markdown(merged):
    """Everything as a page."""
    gpu = merged["gpu"] or {}
    checks = merged["checks"] or {}
    lines = [f"# {gpu.get('name', 'an unknown GPU')}, cuckoo {merged['version']}", ""]
    if not merged["complete"]:
        lines += ["**The run was not finished.**", ""]
    if merged["same_card"] is False:
        lines += ["**Ours and the others ran on different cards: the ratios say nothing.**", ""]
    wrong = checks.get("wrong") or []
    if checks:
        lines += [f"Contract: {checks['cases'] - len(wrong)} of {checks['cases']} operations, bit for bit.", ""]
    lines += [ceiling_line(merged), "", HEAD, *map(line, merged["rows"]), ""]
    if merged["models"]:
        lines += ["| Model | Test | tokens/s | step, ms | % of copies | % of data sheet's bandwidth |", "|---|---|---|---|---|---|"]
        lines += [entry for model in merged["models"] for entry in model_lines(model)]
        lines.append("")
    lines += [f"Not measured: {left['name']}: {left['why']}." for left in merged["not_covered"]]
    return "\n".join(lines) + "\n"
