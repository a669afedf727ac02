"""A table of the largest differences, after the run."""


def pytest_terminal_summary(terminalreporter) -> None:
    rows: dict[str, dict[str, float]] = {}
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == "difference":
                case, kind, found = value
                rows.setdefault(case, {})[kind] = found
    if not rows:
        return
    kinds = ("torch.float64", "gradients", "torch.float32")
    terminalreporter.section("largest differences, relative to the largest number")
    for case, found in rows.items():
        cells = (f"{found[kind]:.0e}" if kind in found else "" for kind in kinds)
        terminalreporter.line(f"| {case} | {' | '.join(cells)} |")
