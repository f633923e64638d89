"""What a staged file takes more memory for than its original."""

from __future__ import annotations

from exprune_cli.record import Record


def memory_notes(record: Record) -> list[str]:
    """Sentences for the report; none where nothing is added."""
    staged = [site for site in record.sites if site.staged]
    codes = sum(site.parameters.get("extra_bytes", 0) for site in staged)
    guarded = [site for site in staged if "most_rows" in site.parameters]
    notes = []
    if codes:
        notes.append(
            f"codes of weights add {codes / 1e6:,.1f} MB to the file and in memory (--exclude leaves a layer as it is)"
        )
    if guarded:
        packed = sum(4 * (site.outputs or 0) * (site.groups or 0) for site in guarded)
        least = min(int(site.parameters["most_rows"]) for site in guarded)
        notes.append(
            f"with more than {least} rows some sites run dense; ONNX Runtime packs their weights once more, "
            f"up to {packed / 1e6:,.1f} MB in memory"
        )
    return notes
